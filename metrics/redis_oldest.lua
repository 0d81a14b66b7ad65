-- The records of a home that were written first; what stands before them in the order and is no
-- more is forgotten, in small steps.
--
-- KEYS    1 records  2 order
-- ARGV    1 how many places of the order to look at
-- returns id, record, id, record, …

local ID, TAG = 16, 8  -- bytes
local found, gone = {}, 0
for _, mark in ipairs(redis.call('LRANGE', KEYS[2], 0, ARGV[1] - 1)) do
  local id = string.sub(mark, 1, ID)
  local record = redis.call('HGET', KEYS[1], id)
  if record and string.sub(record, 1, TAG) == string.sub(mark, ID + 1) then
    found[#found + 1] = id
    found[#found + 1] = record
  elseif #found == 0 then
    gone = gone + 1
  end
end
if gone > 0 then
  redis.call('LTRIM', KEYS[2], gone, -1)
end
return found
