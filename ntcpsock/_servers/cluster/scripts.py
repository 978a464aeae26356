"""What happens in Redis, as Lua scripts: each is one step that nobody else's can come between.

    ntcp:cluster     hash     key and relay: what tells this cluster's brokers from others; never changed
    ntcp:names       hash     name -> row (`rows`)
    ntcp:changes     zset     name -> number of its last change, those of names that are free again included
    ntcp:owners      hash     key -> how many names it has
    ntcp:changed     counter  of changes, without gaps; no clock orders anything
    ntcp:at:KEY      hash     broker -> "number:,mark,mark,": where the node is; expires unless said again
    ntcp:placed      counter  of what is said of places
    ntcp:told:BROKER string   expires with what the broker said of places: by it a jump of this host's clock is seen

    channel ntcp:changes      each change, as an announcement
    channel ntcp:to:BROKER    messages to one broker

A broker is its id in hexadecimal. Whether it is alive is whether somebody listens to its channel, which PUBLISH
tells: so no clock has to run right for that. Redis Cluster is not supported: the scripts make up names of keys.
"""

from __future__ import annotations

from typing import Final

CHANGES_CHANNEL: Final = b"ntcp:changes"
#: Seconds for which a place stands unless it is said again.
PLACE_TTL: Final = 3600


def broker_channel(broker: bytes) -> bytes:
    """Where messages to one broker go."""
    return b"ntcp:to:" + broker.hex().encode()


_RUN: Final = """
local function run()
    return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
end
"""

_CHANGE: Final = """
local function change(name, row)
    local number = redis.call('INCR', 'ntcp:changed')
    redis.call('ZADD', 'ntcp:changes', number, name)
    if row == '' then redis.call('HDEL', 'ntcp:names', name)
    else redis.call('HSET', 'ntcp:names', name, row) end
    return number
end
local function announce(name, row)
    redis.call('PUBLISH', 'ntcp:changes', change(name, row) .. ' ' .. name .. '\\0' .. row)
end
local function own(key, count)
    if redis.call('HINCRBY', 'ntcp:owners', key, count) <= 0 then redis.call('HDEL', 'ntcp:owners', key) end
end
"""

#: ARGV: key, relay. The two that the cluster has, made ours where it has none yet; and the run of this server.
JOIN: Final = (
    _RUN
    + """
redis.call('HSETNX', 'ntcp:cluster', 'key', ARGV[1])
redis.call('HSETNX', 'ntcp:cluster', 'relay', ARGV[2])
return {redis.call('HGET', 'ntcp:cluster', 'key'), redis.call('HGET', 'ntcp:cluster', 'relay'), run()}
"""
)

#: ARGV: broker, anything. Says that on the broker's channel. Returns the run, the number of the latest change, how many
#: listened, and whether what the broker said of places should still stand.
BEAT: Final = (
    _RUN
    + """
local count = redis.call('PUBLISH', 'ntcp:to:' .. ARGV[1], ARGV[2])
return {run(), tonumber(redis.call('GET', 'ntcp:changed') or 0), count, redis.call('EXISTS', 'ntcp:told:' .. ARGV[1])}
"""
)

#: ARGV: run, key, row, names of a key, names in all, name... Binds all names to the row, or none. Returns "kept";
#: "taken", "too many" or "full" with the name in the way; "stale" where this is another run of the server: what it
#: may have forgotten has to be told to it first. Then the row of each name.
CLAIM: Final = (
    _RUN
    + _CHANGE
    + """
if run() ~= ARGV[1] then return {'stale'} end
local key, row, fresh, changed = ARGV[2], ARGV[3], {}, {}
for i = 6, #ARGV do
    local now = redis.call('HGET', 'ntcp:names', ARGV[i])
    if not now then table.insert(fresh, ARGV[i])
    elseif string.sub(now, 1, 32) ~= key then return {'taken', ARGV[i], now}
    elseif now ~= row then table.insert(changed, ARGV[i]) end
end
if #fresh > 0 then
    if tonumber(redis.call('HGET', 'ntcp:owners', key) or 0) + #fresh > tonumber(ARGV[4]) then
        return {'too many', fresh[1]}
    end
    if redis.call('HLEN', 'ntcp:names') + #fresh > tonumber(ARGV[5]) then return {'full', fresh[1]} end
    own(key, #fresh)
end
for _, name in ipairs(fresh) do announce(name, row) end
for _, name in ipairs(changed) do announce(name, row) end
return {'kept'}
"""
)

#: ARGV: name, row. The name has that row from now on, or (empty) is nobody's, whoever has it.
DECREE: Final = (
    _CHANGE
    + """
local now = redis.call('HGET', 'ntcp:names', ARGV[1]) or ''
if now == ARGV[2] then return 0 end
if now ~= '' then own(string.sub(now, 1, 32), -1) end
if ARGV[2] ~= '' then own(string.sub(ARGV[2], 1, 32), 1) end
announce(ARGV[1], ARGV[2])
return 1
"""
)

#: ARGV: run, then name and row in turns. Gives back what this server has forgotten: names that it has not. Returns how
#: many, or -1 where this is another run.
RESTORE: Final = (
    _RUN
    + _CHANGE
    + """
if run() ~= ARGV[1] then return -1 end
local count = 0
for i = 2, #ARGV, 2 do
    if redis.call('HEXISTS', 'ntcp:names', ARGV[i]) == 0 then
        change(ARGV[i], ARGV[i + 1])
        own(string.sub(ARGV[i + 1], 1, 32), 1)
        count = count + 1
    end
end
return count
"""
)

#: ARGV: number, how many. Changes after that number, oldest first: number, name, row (empty: free), in turns.
CHANGES: Final = """
local found = redis.call('ZRANGEBYSCORE', 'ntcp:changes', '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local answer = {}
for i = 1, #found, 2 do
    table.insert(answer, tonumber(found[i + 1]))
    table.insert(answer, found[i])
    table.insert(answer, redis.call('HGET', 'ntcp:names', found[i]) or '')
end
return answer
"""

#: ARGV: broker, seconds, then key, marks and message in turns. The nodes are with that broker; no marks: no more. The
#: message, where there is one, goes to the other brokers that they were with; without, what stood there is only kept.
PLACE: Final = """
redis.call('SET', 'ntcp:told:' .. ARGV[1], '1', 'EX', ARGV[2])
for i = 3, #ARGV, 3 do
    local place = 'ntcp:at:' .. ARGV[i]
    if ARGV[i + 1] == '' then
        redis.call('HDEL', place, ARGV[1])
    else
        if ARGV[i + 2] ~= '' then
            for _, other in ipairs(redis.call('HKEYS', place)) do
                if other ~= ARGV[1] then redis.call('PUBLISH', 'ntcp:to:' .. other, ARGV[i + 2]) end
            end
        end
        local before = redis.call('HGET', place, ARGV[1])
        if ARGV[i + 2] ~= '' or not before or string.match(before, ':(.*)$') ~= ARGV[i + 1] then
            redis.call('HSET', place, ARGV[1], redis.call('INCR', 'ntcp:placed') .. ':' .. ARGV[i + 1])
        end
        redis.call('EXPIRE', place, ARGV[2])
    end
end
return #ARGV
"""

#: ARGV: broker, key, mark, exact (1 or 0), message. Sends it to the broker where the key was last seen with that mark,
#: else, unless exact, where it was last seen at all; brokers to whom nobody listens are forgotten. Returns whether
#: anybody got it.
FORWARD: Final = """
local place, mark, known = 'ntcp:at:' .. ARGV[2], ',' .. ARGV[3] .. ',', {}
local all = redis.call('HGETALL', place)
for i = 1, #all, 2 do
    local number, marks = string.match(all[i + 1], '^(%d+):(.*)$')
    local fits = number and string.find(marks, mark, 1, true) ~= nil
    if all[i] ~= ARGV[1] and number and (fits or ARGV[4] == '0') then
        table.insert(known, {all[i], (fits and 1 or 0), tonumber(number)})
    end
end
table.sort(known, function(a, b) if a[2] ~= b[2] then return a[2] > b[2] end return a[3] > b[3] end)
for _, entry in ipairs(known) do
    if redis.call('PUBLISH', 'ntcp:to:' .. entry[1], ARGV[5]) > 0 then return 1 end
    redis.call('HDEL', place, entry[1])
end
return 0
"""
