-- A write that fails leaves a script half done: what is written without having been read is read here.
read('ZCARD', hosts_key)
read('XLEN', events_key)
