#!lua flags=allow-oom
-- Takes a lock that is free, or that was taken when the answer was lost. KEYS: lock. ARGV: token, ms.
-- A server without memory does it too: only who owns a partition can free any.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then
    return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
