-- Reads new entries of partitions that this consumer owns, as far as there is room.
-- KEYS: lock, stream and retry of each partition. ARGV: group, consumer, room, token of each.
-- Returns for each partition what was found and after which ids of both streams more will come,
-- nothing of one for which there was no room, and false for one that is somebody else's.
local answer, room = {}, tonumber(ARGV[3])
for i = 1, #KEYS, 3 do
    local part = false
    if redis.call('GET', KEYS[i]) == ARGV[4 + (i - 1) / 3] then
        part = {}
        if room > 0 then
            local found = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', room,
                'STREAMS', KEYS[i + 1], KEYS[i + 2], '>', '>')
            part[1] = found or {}
            for _, stream in ipairs(part[1]) do
                room = room - #stream[2]
            end
            for of = 1, 2 do
                local info = redis.call('XINFO', 'STREAM', KEYS[i + of])
                for field = 1, #info, 2 do
                    if info[field] == 'last-generated-id' then
                        part[1 + of] = info[field + 1]
                    end
                end
            end
        end
    end
    answer[#answer + 1] = part
end
return answer
