local function service_key(worker)
  local org, plugin = string.match(worker, '^([^/]+)/([^#]+)#')
  return base .. ':service:' .. plugin .. ':' .. org
end
