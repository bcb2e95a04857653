-- Deletes a consumer, and those that have not been seen for long, each only where it has nothing
-- pending: what is pending would be lost with it.
-- KEYS: streams. ARGV: group, consumer, ms.
for _, stream in ipairs(KEYS) do
    local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, ARGV[1])
    if not consumers.err then
        for _, info in ipairs(consumers) do
            local consumer = {}
            for field = 1, #info, 2 do
                consumer[info[field]] = info[field + 1]
            end
            if consumer.pending == 0
                and (consumer.name == ARGV[2] or consumer.idle > tonumber(ARGV[3])) then
                redis.call('XGROUP', 'DELCONSUMER', stream, ARGV[1], consumer.name)
            end
        end
    end
end
return 0
