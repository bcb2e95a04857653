-- KEYS: delayed. ARGV: delay in ms, unique text, fields.
local time = redis.call('TIME')
local due = time[1] * 1000 + math.floor(time[2] / 1000) + 1 + ARGV[1]
return redis.call('ZADD', KEYS[1], due, cmsgpack.pack({ unpack(ARGV, 2) }))
