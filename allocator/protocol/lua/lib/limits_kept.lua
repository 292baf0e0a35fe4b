-- What a grant writes in a pool with limits (see limits): the indexes that it joins, and those that were left.
for _, it in ipairs(more.gone) do
  if string.find(it[1], ':limited:', 1, true) then
    call('SREM', it[1], it[2])
  end
end
for _, ticket in ipairs(more.next) do
  --@include tell
end
for _, set in ipairs(more.sets) do
  call('SADD', set, space .. ':' .. port)
end
