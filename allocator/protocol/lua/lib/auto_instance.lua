-- The lowest instance of this service that has no live lease; the one again that this token has already. Leaves `worker`.
do
  local taken, mine = {}, nil
  local members = read('ZRANGE', service, 0, MOST_INSTANCES - 1)
  for _, member in ipairs(members) do
    local its_host, port = match(member, '^([%w._-]+):(%d+)$')
    its_host, port = its_host or '-', port or '0'
    local its_space = scope == 'fleet' and '*' or its_host
    local lease = read('GET', base .. ':lease:' .. its_space .. ':' .. port)
    local instance = match(lease or '', '"worker":"[^"#]+#(%d+)"')
    if instance then
      taken[tonumber(instance)] = true
      local grant = read('HGET', base .. ':tokens:' .. its_space, port)
      if grant and find(grant, ' ' .. token .. ' ', 1, true) then
        mine = tonumber(instance)
      end
    end
  end
  local lowest = 0
  while taken[lowest] do
    lowest = lowest + 1
  end
  worker = org .. '/' .. plugin .. '#' .. (mine or lowest)
end
