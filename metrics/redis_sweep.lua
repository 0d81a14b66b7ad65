-- Forgets, of one model, the oldest digests past their time, and panes past theirs.
--
-- KEYS    1 seen  2 panes  3 … the hashes of the panes to forget
-- ARGV    1 digests older than this may go, epoch seconds  2 how many of them at most
--         3 … the names of the panes
-- returns how many digests went

local old = math.min(redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. ARGV[1]), tonumber(ARGV[2]))
if old > 0 then
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, old - 1)
end
for i = 3, #KEYS do
  redis.call('UNLINK', KEYS[i])
  redis.call('ZREM', KEYS[2], ARGV[i])
end
return old
