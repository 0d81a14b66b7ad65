-- What changed of one model since a commit that the caller knows; read only.
--
-- KEYS    1 meta  2 panes  3 constants  4 gauges
-- ARGV    1 epoch  2 sequence  what the caller knows; a sequence of -1 asks for all
--         3       after how many panes the answer may stop
--         4       what, with a pane's name, makes the key of its hash; its slot is that of KEYS
-- returns JSON {epoch, sequence, since, upto, constants, gauges, panes: [[name, [key, number, …]]]}
--         since: -1 where all is sent because ARGV 1 and 2 lie on no history that led here;
--         upto:  panes touched after it are still to be asked for, with it as ARGV[2]
--         Lists are flat as HGETALL gives them; cjson writes an empty one as {}.

local meta = redis.call('HMGET', KEYS[1], 'epoch', 'sequence')
local epoch, sequence, since = meta[1] or '', tonumber(meta[2] or '0'), tonumber(ARGV[2])
if epoch ~= ARGV[1] or sequence < since then
  since = -1
end

local function whole(number)
  return string.format('%.0f', number)
end

local reply = {epoch = epoch, sequence = whole(sequence), since = whole(since), panes = {}}
local most, names, upto = tonumber(ARGV[3]), {}, sequence
local rows = redis.call(
  'ZRANGEBYSCORE', KEYS[2], '(' .. whole(since), '+inf', 'WITHSCORES', 'LIMIT', 0, most)
if #rows == 2 * most then
  upto = tonumber(rows[#rows])
  names = redis.call('ZRANGEBYSCORE', KEYS[2], whole(upto), whole(upto))  -- all of one commit
end
for i = 1, #rows, 2 do
  if #rows < 2 * most or tonumber(rows[i + 1]) < upto then
    names[#names + 1] = rows[i]
  end
end
for i, name in ipairs(names) do
  reply.panes[i] = {name, redis.call('HGETALL', ARGV[4] .. name)}
end
reply.upto = whole(upto)
reply.constants = redis.call('HGETALL', KEYS[3])
reply.gauges = redis.call('HGETALL', KEYS[4])
return cjson.encode(reply)
