-- Adds one model's share of a batch: all of it, or nothing.
--
-- KEYS    1 meta  2 panes  3 constants  4 gauges  5 seen  6 changes (in a cluster: meta again)
--         7 records  8 order  9 held
--         10 …    the hashes of the panes in ARGV[2], in its order
-- ARGV    1       the digests taken for new, 16 bytes each
--         2       JSON {
--                   model, changes: true where KEYS[6] is to be rung,
--                   epoch, sequence: what the caller knows of the model ('' and 0: nothing),
--                   fresh: a random text, the epoch of a model that has none,
--                   now, forget: epoch seconds as text; digests older than `forget` may go,
--                   keep: seconds after which nobody needs `seen` any more,
--                   constants: [name, JSON, …]  gauges: [key, time, value, …]
--                   replaced: {name: JSON that one of the constants replaces, or '' for none, …}
--                   panes: [[name, seconds to live (0: for ever)], …]
--                   vectors: [[[key, …], [number, …], [which panes, from 1, …]], …]
--                     every pane is in one of them }
--         3 …     for each record to be swapped: 16 bytes, the tag of the one that must be there
--                 ('' for none), the one that is to be there ('' for none); its tag comes first
-- returns {'ok', sequence, change, exact}   written; exact is 0 where an integer passed 64 bits
--         {'known', 'i j …'}                nothing written: these digests (from 0) are not new
--         {'differs'}                       nothing written: a constant has another value
--         {'record'}                        nothing written: another record is there
--         {'stale'}                         nothing written: the caller must load the model first
--
-- A number is the text of an integer, or of an exact number, which bears a "p".
--
-- There is no rollback in a script, so every key is read, and so its type proven, and every sum
-- made before the first write.

local CHUNK = 2000  -- unpack() fails at about 8000; a pair takes two
local EXACT = 2 ^ 53  -- from here on doubles skip integers
local PANES = 9
local TAG = 8  -- bytes
local a = cjson.decode(ARGV[2])

if #ARGV[1] % 16 ~= 0 or #KEYS ~= PANES + #a.panes then
  return redis.error_reply('ERR commit: KEYS and ARGV disagree')
end

local find, format, sub, byte = string.find, string.format, string.sub, string.byte
local abs, floor, max, min = math.abs, math.floor, math.max, math.min

-- Whether a text is a float's: that has a point, an exponent, or is inf or nan.
local function is_float(text)
  return find(text, '[.en]') ~= nil
end

local function float_text(number)
  local text = format('%.17g', number)
  return is_float(text) and text or text .. '.0'
end

-- Exact numbers: "-1fp-80" is -(0x1f) * 2^-80. They are added as digits of 40 bits, the lowest
-- first, all of them with the number's sign; `exact` returns these and the place of the lowest.

local DIGIT, BASE, LOWEST = 10, 2 ^ 40, -10  -- hexadecimal places, units of the lowest place

local function is_exact(text)
  return find(text, 'p', 1, true) ~= nil
end

local function exact(text)
  local digits, n = {}, 0
  local p = find(text, 'p', 1, true)
  if not p then  -- a float of format 1; what is below the lowest place is dropped
    local x = tonumber(text)
    local rest, _, e = abs(x), math.frexp(x)
    local top = max(floor((e - 1) / 40), LOWEST)
    local low = max(top - 2, LOWEST)
    for place = top, low, -1 do
      local scale = BASE ^ place
      local digit = floor(rest / scale)
      rest = rest - digit * scale
      digits[place - low + 1] = x < 0 and -digit or digit
    end
    return digits, low
  end
  local negative = byte(text) == 45  -- a minus
  local first, at = negative and 2 or 1, p - 1
  while at - first >= DIGIT do
    n = n + 1
    digits[n] = tonumber(sub(text, at - DIGIT + 1, at), 16)
    at = at - DIGIT
  end
  n = n + 1
  digits[n] = tonumber(sub(text, first, at), 16)
  if negative then
    for i = 1, n do
      digits[i] = -digits[i]
    end
  end
  return digits, tonumber(sub(text, p + 1)) / 40
end

-- `exact_sum` where neither is negative and the sum has three or four digits, the lowest of them
-- old's, as nearly always; else nil. It takes half the time.
local function usual_sum(old, more, lowest)
  local p = find(old, 'p', 1, true)
  if not p or p < 22 or p > 41 or byte(old) == 45 then
    return nil
  end
  local e = sub(old, p + 1)
  local shift = lowest - e / 40
  if shift < 0 or shift + #more > 4 then
    return nil
  end
  local a = tonumber(sub(old, p - 10, p - 1), 16) + (more[1 - shift] or 0)
  local b = tonumber(sub(old, p - 20, p - 11), 16) + (more[2 - shift] or 0)
  local c, d = more[3 - shift] or 0, more[4 - shift] or 0
  if p > 31 then
    c = c + tonumber(sub(old, p - 30, p - 21), 16)
    d = d + tonumber(sub(old, 1, p - 31), 16)
  else
    c = c + tonumber(sub(old, 1, p - 21), 16)
  end
  if a >= BASE then
    a, b = a - BASE, b + 1
  end
  if b >= BASE then
    b, c = b - BASE, c + 1
  end
  if c >= BASE then
    c, d = c - BASE, d + 1
  end
  if a == 0 or d >= BASE then
    return nil
  elseif d > 0 then
    return format('%x%010x%010x%010xp%s', d, c, b, a, e)
  elseif c > 0 then
    return format('%x%010x%010xp%s', c, b, a, e)
  end
end

-- The text of the exact number `old`, a text, plus that of `more` digits from place `lowest`.
local function exact_sum(old, more, lowest)
  local text = more[1] >= 0 and more[#more] >= 0 and usual_sum(old, more, lowest)
  if text then
    return text
  end
  local digits, low = exact(old)
  local place, stop = min(low, lowest), max(low + #digits, lowest + #more) - 1
  local sums, n, carry = {}, 0, 0
  for at = place, stop do
    local digit = (digits[at - low + 1] or 0) + (more[at - lowest + 1] or 0) + carry
    if digit >= 0 and digit < BASE then
      carry = 0
    else
      carry = floor(digit / BASE)
      digit = digit - carry * BASE
    end
    if n > 0 or digit ~= 0 then
      n = n + 1
      sums[n] = digit
    else
      place = place + 1  -- no number ends with zeros
    end
  end
  if carry < -1 then
    n = n + 1
    sums[n] = carry + BASE
    carry = -1
  end
  local sign = ''
  if carry < 0 then  -- what stands in `sums` is too much by BASE ^ n
    sign, carry = '-', 1
    for i = 1, n do
      local digit = BASE - 1 - sums[i] + carry
      carry = digit >= BASE and 1 or 0
      sums[i] = digit - carry * BASE
    end
  end
  if carry > 0 then
    n = n + 1
    sums[n] = carry
  end
  while n > 0 and sums[n] == 0 do
    n = n - 1
  end
  local e = 40 * place
  if n == 3 then
    return format('%s%x%010x%010xp%d', sign, sums[3], sums[2], sums[1], e)
  elseif n == 4 then
    return format('%s%x%010x%010x%010xp%d', sign, sums[4], sums[3], sums[2], sums[1], e)
  elseif n == 0 then
    return '0p0'
  end
  local highest_first = {}
  for i = n, 1, -1 do
    highest_first[n - i + 1] = sums[i]
  end
  highest_first[n + 1] = e
  local shape = '%s%x' .. string.rep('%010x', n - 1) .. 'p%d'
  return format(shape, sign, unpack(highest_first))
end

-- The text of `old`, a text, plus `y`, whose text is `new`; nil where doubles do not hold the sum
-- of integers exactly. Of an exact number, `y` is its digits and `y_lowest` their lowest place.
local function sum(old, new, y, y_is_float, y_lowest)
  if not old then
    return new
  end
  if y_lowest then
    return exact_sum(old, y, y_lowest)
  end
  local x = tonumber(old)
  if y_is_float or is_float(old) then
    return float_text(x + y)
  end
  if abs(x) < EXACT and abs(y) < EXACT and abs(x + y) < EXACT then
    return format('%d', x + y)
  end
end

-- Calls a command with `list` in chunks; `stride` of its elements belong together.
local function call(command, key, list, stride)
  for first = 1, #list, CHUNK * stride do
    redis.call(command, key, unpack(list, first, min(first + CHUNK * stride - 1, #list)))
  end
end

-- 1. Is the caller up to date, and is all of it new?

local meta = redis.call('HMGET', KEYS[1], 'epoch', 'sequence')
local epoch, sequence = meta[1] or '', tonumber(meta[2] or '0')
if epoch ~= a.epoch or sequence < a.sequence then
  return {'stale'}
end

local digests, known = {}, {}
for at = 1, #ARGV[1], 16 do
  digests[#digests + 1] = string.sub(ARGV[1], at, at + 15)
end
for first = 1, #digests, CHUNK do
  local last = min(first + CHUNK - 1, #digests)
  local times = redis.call('ZMSCORE', KEYS[5], unpack(digests, first, last))
  for i = 1, last - first + 1 do
    if times[i] then
      known[#known + 1] = first + i - 2
    end
  end
end
if #known > 0 then
  return {'known', table.concat(known, ' ')}
end

for i = 1, #a.constants, 2 do
  local text, before = redis.call('HGET', KEYS[3], a.constants[i]), a.replaced[a.constants[i]]
  if before then
    if (text or '') ~= before then
      return {'differs'}
    end
  elseif text and text ~= a.constants[i + 1] then
    return {'differs'}
  end
end

local grown = 0
for i = 3, #ARGV, 3 do
  local id, before, after = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local old = redis.call('HGET', KEYS[7], id) or ''
  if string.sub(old, 1, TAG) ~= before then
    return {'record'}
  end
  grown = grown + #after - #old
end
if #ARGV > 2 then
  redis.call('LLEN', KEYS[8])
  tonumber(redis.call('GET', KEYS[9]) or '0')
end

-- 2. What will stand where?

local gauges = {}
for i = 1, #a.gauges, 3 do
  local old = redis.call('HGET', KEYS[4], a.gauges[i])
  if not old or tonumber(string.match(old, '^%S+')) <= tonumber(a.gauges[i + 1]) then
    gauges[#gauges + 1] = a.gauges[i]
    gauges[#gauges + 1] = a.gauges[i + 1] .. ' ' .. a.gauges[i + 2]
  end
end

local rows, large = {}, {}
for _, vector in ipairs(a.vectors) do
  local names, texts, numbers, floats, lowest = vector[1], vector[2], {}, {}, {}
  for i = 1, #texts do
    if is_exact(texts[i]) then
      numbers[i], lowest[i] = exact(texts[i])
    else
      numbers[i], floats[i] = tonumber(texts[i]), is_float(texts[i])
    end
  end
  for _, p in ipairs(vector[3]) do
    local key, row, n = KEYS[PANES + p], {}, 0
    for first = 1, #names, CHUNK do
      local last = min(first + CHUNK - 1, #names)
      local old = redis.call('HMGET', key, unpack(names, first, last))
      for i = first, last do
        local text = sum(old[i - first + 1], texts[i], numbers[i], floats[i], lowest[i])
        if text then
          row[n + 1], row[n + 2] = names[i], text
          n = n + 2
        else
          large[#large + 1] = {key, names[i], texts[i]}
        end
      end
    end
    rows[p] = row
  end
end

local old_digests = redis.call('ZCOUNT', KEYS[5], '-inf', '(' .. a.forget)
redis.call('ZCARD', KEYS[2])
local change, born = 0, true
if a.changes then
  change = tonumber(redis.call('ZREVRANGE', KEYS[6], 0, 0, 'WITHSCORES')[2] or '0') + 1
  born = redis.call('ZCOUNT', KEYS[6], 0, 0) > 0
end

-- 3. Write.

local sequence_text = string.format('%.0f', sequence + 1)
redis.call('HSET', KEYS[1], 'epoch', epoch == '' and a.fresh or epoch, 'sequence', sequence_text)

if #digests > 0 then
  local dated = {}
  for i, digest in ipairs(digests) do
    dated[2 * i - 1] = a.now
    dated[2 * i] = digest
  end
  -- At most twice what was added: memory stays bounded, and no commit has much to remove.
  old_digests = min(old_digests, 2 * #digests)
  if old_digests > 0 then
    redis.call('ZREMRANGEBYRANK', KEYS[5], 0, old_digests - 1)
  end
  call('ZADD', KEYS[5], dated, 2)
  redis.call('EXPIRE', KEYS[5], a.keep)
end

for i = 3, #ARGV, 3 do
  local id, after = ARGV[i], ARGV[i + 2]
  if after == '' then
    redis.call('HDEL', KEYS[7], id)
  else
    redis.call('HSET', KEYS[7], id, after)
    redis.call('RPUSH', KEYS[8], id .. string.sub(after, 1, TAG))
  end
end
if grown ~= 0 then
  redis.call('INCRBY', KEYS[9], grown)
end

local marks = {}
for p, pane in ipairs(a.panes) do
  local key = KEYS[PANES + p]
  call('HSET', key, rows[p], 2)
  if pane[2] > 0 then
    redis.call('EXPIRE', key, pane[2])
  end
  marks[2 * p - 1] = sequence_text
  marks[2 * p] = pane[1]
end
call('ZADD', KEYS[2], marks, 2)
call('HSET', KEYS[3], a.constants, 2)
call('HSET', KEYS[4], gauges, 2)

local exact = 1
for _, cell in ipairs(large) do
  local key, name, number = unpack(cell)
  local reply = redis.pcall('HINCRBY', key, name, number)
  if type(reply) == 'table' and reply.err then
    local old = redis.call('HGET', key, name)
    redis.call('HSET', key, name, float_text(tonumber(old) + tonumber(number)))
    exact = 0
  end
end

if a.changes then
  redis.call('ZADD', KEYS[6], string.format('%.0f', change), a.model)
end
if not born then
  redis.call('ZADD', KEYS[6], 0, 'birth ' .. a.fresh)
end
return {'ok', sequence + 1, change, exact}
