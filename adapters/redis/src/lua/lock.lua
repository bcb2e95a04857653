-- Renews locks that are still held, or gives them up. KEYS: locks. ARGV: ms or 0, then the token of
-- each lock. Returns 1 for each that was held and 0 for each that was not.
local answer = {}
for i, lock in ipairs(KEYS) do
    if redis.call('GET', lock) ~= ARGV[i + 1] then
        answer[i] = 0
    elseif ARGV[1] == '0' then
        answer[i] = redis.call('DEL', lock)
    else
        answer[i] = redis.call('PEXPIRE', lock, ARGV[1])
    end
end
return answer
