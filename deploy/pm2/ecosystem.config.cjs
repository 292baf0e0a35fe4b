// Two workers under PM2, each on a leased port. Either way the port stays the same over restarts.
const path = require('node:path');

const runner = process.env.PLUGIN_RUNNER || 'plugin-sdk-v2/runner/index.js';
const words = (plugin) => ['node', runner, `--plugin-path=./plugins/core/${plugin}`, '--org-id=org-123'];

module.exports = {
  apps: [
    {
      // Supervised: health, EADDRINUSE, the whole process tree. No agent is needed; PM2 does the restarts.
      name: 'email-plugin-org123',
      script: 'allocator',
      interpreter: 'none',
      args: ['run', 'email', '--org', 'org-123', '--instance', 'auto', '--health', '/health', '--restart', 'never', '--wait', '30s', '--',
        ...words('email'), '--port={port}'],
      treekill: false, // PM2 signals the supervisor only, which lets proxies go before it stops the worker
      kill_timeout: 8000, // longer than --drain-delay and --stop-timeout
    },
    {
      // A hook before the start; the agent of this host renews the lease and releases it when the worker ends.
      name: 'stripe-plugin-org123',
      script: path.join(__dirname, '../hooks/start-worker.sh'),
      interpreter: 'sh',
      args: ['stripe', 'org-123', 'sh', '-c', 'exec "$@" --port="$PORT"', 'sh', ...words('stripe')],
    },
  ],
};
