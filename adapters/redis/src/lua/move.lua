-- Moves what is due to the group's own stream; answers in how many ms the next is due, or -1.
-- KEYS: delayed, retry. ARGV: the most to move.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
    redis.call('XADD', KEYS[2], '*', unpack(cmsgpack.unpack(member), 2))
    redis.call('ZREM', KEYS[1], member)
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return next[2] and math.max(0, tonumber(next[2]) - now) or -1
