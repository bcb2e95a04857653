-- Finds those entries that nobody has any more: the group was handed them, and then somebody deleted
-- the consumer that had them (XGROUP DELCONSUMER), and what it had pending with it. Those that are
-- renewed or given back are pending again then.
-- KEYS: stream, lock. ARGV: group, consumer, token or '', mode, the count to give back with, and for
-- each entry its place, id and count. Returns the places of those that it found, and none that was
-- refused.
local stream, group, consumer, token, mode = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if token ~= '' and redis.call('GET', KEYS[2]) ~= token then
    return { {}, {} }
end
local function parts(id)
    local ms, seq = string.match(id, '(%d+)-(%d+)')
    return tonumber(ms), tonumber(seq)
end
-- A group that was made anew has not been handed them yet.
local last_ms, last_seq = -1, -1
for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local fields = {}
    for field = 1, #info, 2 do
        fields[info[field]] = info[field + 1]
    end
    if fields.name == group then
        last_ms, last_seq = parts(fields['last-delivered-id'])
    end
end
local found = {}
for i = 6, #ARGV, 3 do
    local place, id, count = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2]
    local ms, seq = parts(id)
    local handed_out = ms < last_ms or (ms == last_ms and seq <= last_seq)
    if handed_out and not redis.call('XPENDING', stream, group, id, id, 1)[1] then
        local is_kept = true
        if mode == 'back' then
            -- Idle since 1970: whoever looks next may have it.
            is_kept = redis.call('XCLAIM', stream, group, consumer, 0, id, 'TIME', 0, 'RETRYCOUNT', ARGV[5], 'FORCE', 'JUSTID')[1]
        elseif mode == 'renew' then
            -- One that was trimmed meanwhile is in this process only, and is kept there.
            redis.call('XCLAIM', stream, group, consumer, 0, id, 'RETRYCOUNT', count, 'FORCE', 'JUSTID')
        end
        if is_kept then
            found[#found + 1] = place
        end
    end
end
return { found, {} }
