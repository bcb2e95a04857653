-- Stores a message until its time; false where its queue does not exist.
-- KEYS: delayed, stream. ARGV: delay in ms, unique text, fields.
if redis.call('EXISTS', KEYS[2]) == 0 then
    return false
end
local time = redis.call('TIME')
local due = time[1] * 1000 + math.floor(time[2] / 1000) + 1 + ARGV[1]
return redis.call('ZADD', KEYS[1], due, cmsgpack.pack({ unpack(ARGV, 2) }))
