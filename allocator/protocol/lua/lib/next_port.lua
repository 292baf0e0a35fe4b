-- When the next port that a claim would take is claimable, in ms from now, as text (-1: unknown).
local function ms_until_next(first, last, dynamic, spill, conventional, now)
  for offset = 0, MAX_CONVENTIONAL, PAGE do
    local ahead = read('ZRANGEBYSCORE', ports_key, '(' .. whole(now), FOREVER, 'WITHSCORES', 'LIMIT', offset, PAGE)
    for i = 1, #ahead, 2 do
      local port = tonumber(ahead[i])
      if within(strangers, port) then
        port = 0
      end
      if within(dynamic, port) or (port >= first and port <= last
          and (spill or string.find(',' .. conventional .. ',', ',' .. ahead[i] .. ',', 1, true))) then
        return whole(ahead[i + 1] - now)
      end
    end
    if #ahead < 2 * PAGE then
      return '-1'
    end
  end
  return '-1'
end
