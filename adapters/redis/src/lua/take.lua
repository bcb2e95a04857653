-- Reads new entries of a partition that this consumer owns; false when it does not any more.
-- KEYS: lock, stream, retry. ARGV: group, consumer, token, count.
if redis.call('GET', KEYS[1]) ~= ARGV[3] then
    return false
end
local found = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[4],
    'STREAMS', KEYS[2], KEYS[3], '>', '>')
local answer = { found or {} }
for i = 2, 3 do
    -- Where to wait for what comes next.
    local info = redis.call('XINFO', 'STREAM', KEYS[i])
    for field = 1, #info, 2 do
        if info[field] == 'last-generated-id' then
            answer[i] = info[field + 1]
        end
    end
end
return answer
