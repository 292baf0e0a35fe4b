-- Makes known who the host is, where it was not.
if not is_known then
  call('HSET', host_key, 'identity', identity)
  if scope == 'fleet' then
    -- There the space is no host: the agenda has the host beside it, with nothing to visit.
    call('ZADD', hosts_key, 'NX', FOREVER, host)
  end
end
