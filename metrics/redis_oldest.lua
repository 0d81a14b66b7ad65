-- The records of a home that were written first; what stands before them in the order and is no
-- more is forgotten, in small steps.
--
-- KEYS    1 records  2 order
-- ARGV    1 how many records at most
-- returns id, record, id, record, …

local ID, TAG, STEP, STEPS = 16, 8, 500, 20  -- bytes, bytes, places, steps
local most, found, at, gone = 2 * tonumber(ARGV[1]), {}, 0, 0
for _ = 1, STEPS do
  local marks = redis.call('LRANGE', KEYS[2], at, at + STEP - 1)
  for _, mark in ipairs(marks) do
    local id = string.sub(mark, 1, ID)
    local record = redis.call('HGET', KEYS[1], id)
    if record and string.sub(record, 1, TAG) == string.sub(mark, ID + 1) then
      found[#found + 1] = id
      found[#found + 1] = record
    elseif #found == 0 then
      gone = gone + 1
    end
    if #found >= most then
      break
    end
  end
  at = at + STEP
  if #marks < STEP or #found >= most then
    break
  end
end
if gone > 0 then
  redis.call('LTRIM', KEYS[2], gone, -1)
end
return found
