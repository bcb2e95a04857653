-- KEYS: stream, retry, delayed. ARGV: group.
-- Answers ready, in flight, delayed, and the age in ms of the oldest that waits or -1; false when
-- there is no such group.
local ready, flight, oldest = 0, 0, nil
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function waits(id)
    local ms = tonumber(string.match(id, '%d+'))
    oldest = math.min(oldest or ms, ms)
end
for i = 1, 2 do
    local found = false
    for _, info in ipairs(redis.call('EXISTS', KEYS[i]) == 1 and redis.call('XINFO', 'GROUPS', KEYS[i]) or {}) do
        local group = {}
        for field = 1, #info, 2 do
            group[info[field]] = info[field + 1]
        end
        if group.name == ARGV[1] then
            found = true
            local from = '(' .. group['last-delivered-id']
            local lag = group.lag
            if not lag then
                -- The server lost count when somebody deleted entries.
                lag = 0
                local next = from
                repeat
                    local page = redis.call('XRANGE', KEYS[i], next, '+', 'COUNT', 1000)
                    lag = lag + #page
                    next = #page > 0 and '(' .. page[#page][1]
                until #page < 1000
            end
            local first = redis.call('XRANGE', KEYS[i], from, '+', 'COUNT', 1)[1]
            if first then
                waits(first[1])
            end
            -- Given back: idle since 1970.
            local back = redis.call('XPENDING', KEYS[i], ARGV[1], 'IDLE', 1000000000000, '-', '+', 1000000)
            if back[1] then
                waits(back[1][1])
            end
            ready = ready + lag + #back
            flight = flight + group.pending - #back
        end
    end
    if not found then
        return false
    end
end
return { ready, flight, redis.call('ZCARD', KEYS[3]), oldest and math.max(0, now - oldest) or -1 }
