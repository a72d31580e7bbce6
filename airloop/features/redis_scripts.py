"""
The Lua scripts of :mod:`airloop.features.online_redis`. Redis runs each without anyone in between.

Those that write are called with ``KEYS``: the watermark, the lease, and entities if they are few; ``ARGV`` begins with
the owner of the lease and how long it is renewed for, milliseconds. They answer with the name of what they counted, and
the count.

A mark, ``_airloop:<view>``, is event and arrival time in microseconds, two big-endian integers of 64 bits. To Lua they
are floating point numbers, exact until the year 2255. Memory for what is written was looked for before the first call,
so that no call in the middle is refused (``allow-oom``).
"""

REPLACES = b"!"
"""Behind the mark of a row that replaces what we wrote though it be older."""
NEVER = 2**62
"""A time after all others, microseconds."""

_OWNED = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return redis.error_reply('LEASE is held by someone else') end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
"""

_MICROSECONDS = """
-- Of a google.protobuf.Timestamp: field 1 seconds, field 2 nanoseconds, both varints.
local function microseconds(text)
  local found, at = {0, 0}, 1
  while at <= #text do
    local field = math.floor(text:byte(at) / 8)
    local value, complement, scale, bytes, byte = 0, 0, 1, 0, 0
    repeat
      at, bytes = at + 1, bytes + 1
      byte = text:byte(at)
      value = value + byte % 128 * scale
      if bytes < 10 then complement = complement + (127 - byte % 128) * scale end
      scale = scale * 128
    until byte < 128
    -- Ten bytes are a negative number in two's complement.
    found[field] = bytes == 10 and -1 - complement or value
    at = at + 1
  end
  return found[1] * 1000000 + math.floor(found[2] / 1000)
end
"""

_SWITCH = """
-- ARGV[3]: whether equal times replace; [4] the fields: _ts, _airloop, features; [5] row by row the key, the Timestamp,
-- the mark and the values; both in MessagePack, which costs a fifth less than arguments.
local equal, fields, rows = ARGV[3] == '1', {cmsgpack.unpack(ARGV[4])}, ARGV[5]
local call, take_off = redis.call, cmsgpack.unpack_limit
local ts_field, mark_field = fields[1], fields[2]
local written, fresh, at = 0, 0, 0
while at ~= -1 do
  local take, whole, known = true, true, false
  local key, ts, mark
  {head}
  local replaces = #mark > 16
  if replaces then mark = mark:sub(1, 16) end
  -- Most rows of a first load: EXISTS costs less than HMGET.
  if call('EXISTS', key) == 1 then
    local now = call('HMGET', key, ts_field, mark_field)
    if now[1] then
      local event, arrival = struct.unpack('>i8i8', mark)
      local there = microseconds(now[1])
      whole = event >= there
      if now[2] then
        known = true
        local old_event, old_arrival = struct.unpack('>i8i8', now[2])
        take = replaces or event > old_event or (event == old_event and
          (arrival > old_arrival or (equal and arrival == old_arrival)))
        -- What is there is ours, or somebody wrote it since and it stays if its time is newer.
        whole = whole or there == old_event
      end
    end
  end
  whole = whole and take
  if take then
    written = written + 1
    if not known then fresh = fresh + 1 end
  end
  {set}
end
call('HINCRBY', KEYS[1], 'entities', fresh)
call('HSETNX', KEYS[1], ts_field, '')
return {'written', written}
"""
_FIELDS_PER_CALL = 50
"""A function of Lua has 250 registers, for its variables and for the arguments of a call."""


def switch(features: int) -> str:
    """
    The script that takes over rows.

    :param features: how many a row has. They are taken off and written by name, not in a table, which would take longer
        than the write.
    """
    groups = [range(at, min(at + _FIELDS_PER_CALL, features)) for at in range(0, features, _FIELDS_PER_CALL)]
    head, sets = "", []
    for group in groups:
        names = ", ".join(f"v{i}" for i in group)
        pairs = "".join(f", fields[{i + 3}], v{i}" for i in group)
        if not head:
            head = f"local {names}\n  at, key, ts, mark, {names} = take_off(rows, {3 + len(group)}, at)"
            sets.append(f"if whole then call('HSET', key, ts_field, ts, mark_field, mark{pairs})")
            sets.append("elseif take then call('HSET', key, mark_field, mark) end")
            continue
        sets.append(f"do local {names}\n  at, {names} = take_off(rows, {len(group)}, at)")
        sets.append(f"if whole then call('HSET', key{pairs}) end end")
    script = _SWITCH.replace("{head}", head).replace("{set}", "\n  ".join(sets))
    return "#!lua flags=allow-oom" + _OWNED + _MICROSECONDS + script


EXPIRE = (
    "#!lua flags=allow-oom"
    + _OWNED
    + _MICROSECONDS
    + """
-- ARGV[3]: values of ours with an older event time go; [4] number of features, their fields, _ts, _airloop.
local before, features = tonumber(ARGV[3]), tonumber(ARGV[4])
local ts_field, mark_field = ARGV[5 + features], ARGV[6 + features]
local expired = 0
for i = 3, #KEYS do
  local now = redis.call('HMGET', KEYS[i], ts_field, mark_field)
  if now[2] then
    local event = struct.unpack('>i8', now[2])
    if event < before then
      expired = expired + 1
      if now[1] and microseconds(now[1]) <= event then
        redis.call('HDEL', KEYS[i], unpack(ARGV, 5))
      else
        redis.call('HDEL', KEYS[i], mark_field)
      end
    end
  end
end
-- Not -expired: minus zero is no integer to Redis.
redis.call('HINCRBY', KEYS[1], 'entities', 0 - expired)
return {'expired', expired}
"""
)

MOVE = (
    "#!lua flags=allow-oom"
    + _OWNED
    + """
-- ARGV[3] until, [4] key, [5] snapshot, [6] _ts.
local now = redis.call('HGET', KEYS[1], 'until')
if now and tonumber(ARGV[3]) < tonumber(now) then return {'moved', 0} end
redis.call('HSET', KEYS[1], 'until', ARGV[3], 'key', ARGV[4], 'snapshot', ARGV[5], ARGV[6], '')
redis.call('HINCRBY', KEYS[1], 'entities', 0)
return {'moved', 1}
"""
)

SURVEY = """#!lua flags=no-writes
-- KEYS: entities. ARGV[1] a time or nothing, [2] _ts, [3] _airloop. How many have a value of ours, and the older ones.
local before, count, old = tonumber(ARGV[1]), 0, {}
for i = 1, #KEYS do
  local now = redis.pcall('HMGET', KEYS[i], ARGV[2], ARGV[3])
  if not now.err and now[2] then
    if now[1] then count = count + 1 end
    if before and struct.unpack('>i8', now[2]) < before then old[#old + 1] = KEYS[i] end
  end
end
return {count, old}
"""

RENEW = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return redis.error_reply('LEASE is held by someone else') end
return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
"""

RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
