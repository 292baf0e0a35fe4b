// A plugin worker of the SDK's shape: it listens for the wrappers above it, with a helper process below it.
//
// runner.mjs --plugin-path=PATH --org-id=ORG --port=PORT
// Exit codes: 0 stopped by SIGTERM or SIGINT, 1 cannot initialise, 2 the HTTP server failed.
// While the file that WORKER_SICK names exists, /health answers 503. POST /disable is written to WORKER_LOG.

import { spawn } from 'node:child_process';
import { appendFileSync, existsSync } from 'node:fs';
import { createServer } from 'node:http';
import { parseArgs } from 'node:util';

const { values } = parseArgs({
  options: {
    'plugin-path': { type: 'string' },
    'org-id': { type: 'string' },
    port: { type: 'string' },
    'listen-fd': { type: 'string' },
  },
});
const log = (line) => process.env.WORKER_LOG && appendFileSync(process.env.WORKER_LOG, line + '\n');

if (!existsSync(values['plugin-path'] ?? '')) {
  console.error(`Failed to initialize plugin: ${values['plugin-path']} does not exist`);
  process.exit(1);
}

// As esbuild's service does, it ends when its standard input does.
const helper = spawn('cat', { stdio: ['pipe', 'ignore', 'ignore'] });

const answers = {
  'GET /health': () =>
    existsSync(process.env.WORKER_SICK ?? '')
      ? [503, { status: 'unhealthy' }]
      : [200, { status: 'healthy', organizationId: values['org-id'] }],
  'GET /metadata': () => [200, { pid: process.pid, organizationId: values['org-id'] }],
  'GET /mcp/list-tools': () => [200, { tools: [] }],
  'POST /disable': () => (log('disable'), [200, { disabled: true }]),
};

const server = createServer((request, response) => {
  const [code, body] = answers[`${request.method} ${request.url}`]?.() ?? [404, { error: 'not found' }];
  response.writeHead(code, { 'content-type': 'application/json', connection: 'close' });
  response.end(JSON.stringify(body));
});

server.on('error', (error) => {
  console.error(error);
  helper.stdin.end();
  process.exit(2);
});

for (const signal of ['SIGTERM', 'SIGINT']) {
  process.on(signal, () => {
    log(signal);
    helper.stdin.end();
    server.close(() => process.exit(0));
  });
}
for (const signal of ['SIGHUP', 'SIGUSR2']) process.on(signal, () => log(signal));

server.listen(values['listen-fd'] ? { fd: Number(values['listen-fd']) } : Number(values.port), () =>
  console.log(`listening on ${values.port}`),
);
