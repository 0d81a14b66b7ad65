-- Begins a new epoch of one model: with nothing left of it, or with all of it and a new `created`.
--
-- KEYS    1 meta  2 panes  3 constants  4 gauges  5 changes (in a cluster: meta again)
-- ARGV    1 model  2 the epoch that the caller means to end  3 the epoch to begin
--         4       JSON of the new `created`; '' to forget the model's counters
--         5       '1' where KEYS[5] is to be rung
--         6       what, with a pane's name, makes the key of its hash; its slot is that of KEYS
-- returns the sequence, or -1 and nothing written where another epoch is on

if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[2] then
  return -1
end
if ARGV[4] == '' then
  local names = redis.call('ZRANGE', KEYS[2], 0, -1)
  for _, name in ipairs(names) do
    redis.call('EXISTS', ARGV[6] .. name)  -- fails, before any write, while a slot migrates
  end
  for _, name in ipairs(names) do
    redis.call('UNLINK', ARGV[6] .. name)
  end
  redis.call('UNLINK', KEYS[2], KEYS[3], KEYS[4])
else
  redis.call('HSET', KEYS[3], 'created', ARGV[4])
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[3])
if ARGV[5] == '1' then
  local top = tonumber(redis.call('ZREVRANGE', KEYS[5], 0, 0, 'WITHSCORES')[2] or '0')
  redis.call('ZADD', KEYS[5], string.format('%.0f', top + 1), ARGV[1])
end
return redis.call('HINCRBY', KEYS[1], 'sequence', 1)
