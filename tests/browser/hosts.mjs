// Six hosts that don't exist: what they look like, what they measure.

export const HOSTILE = '<img src=x onerror=alert(1)>'
export const HOSTILE_LINK = 'javascript:alert(1)'

const GiB = 2 ** 30

const wave = (t, period, phase = 0) => (Math.sin((t / period) * 2 * Math.PI + phase) + 1) / 2

/** Values of one host at an instant; `seed` tells hosts apart. */
const METRICS = {
  cpu: (t, seed) => [
    [{ mode: 'user' }, 0.12 + 0.2 * wave(t, 700, seed) + 0.06 * wave(t, 61)],
    [{ mode: 'system' }, 0.05 + 0.04 * wave(t, 333, seed)],
    [{ mode: 'iowait' }, 0.02 * wave(t, 120, 1)],
    [{ mode: 'softirq' }, 0.004],
    [{ mode: 'steal' }, 0],
  ],
  total: () => [[{}, 16 * GiB]],
  available: (t, seed) => [[{}, (9 - seed - 2 * wave(t, 2400)) * GiB]],
  load1: (t, seed) => [[{}, 0.4 + seed / 3 + 1.2 * wave(t, 700, seed) + 0.1 * wave(t, 7)]],
  load5: (t, seed) => [[{}, 0.6 + seed / 3 + 0.7 * wave(t, 900, seed)]],
  load15: (t, seed) => [[{}, 0.7 + seed / 3 + 0.3 * wave(t, 1500, seed)]],
  filesystem: () => [
    [{ device: '/dev/vda1', mountpoint: '/', fstype: 'ext4' }, 0.61],
    [{ device: '/dev/vdb1', mountpoint: '/var/lib/postgresql', fstype: 'xfs' }, 0.83],
    [{ device: '/dev/vda15', mountpoint: '/boot/efi', fstype: 'vfat' }, 0.09],
  ],
  read: (t) => [
    [{ device: 'vda' }, 4e5 * wave(t, 200)],
    [{ device: 'vdb' }, 6e6 * wave(t, 400) ** 4],
  ],
  written: (t) => [
    [{ device: 'vda' }, 9e5 * wave(t, 260)],
    [{ device: 'vdb' }, 8e6 * wave(t, 500, 2) ** 2],
  ],
  receive: (t) => [[{ device: 'eth0' }, 2.5e6 * wave(t, 800) + 3e5 * wave(t, 40)]],
  transmit: (t) => [[{ device: 'eth0' }, 1.1e6 * wave(t, 800, 0.4) + 1e5 * wave(t, 50)]],
  boot: () => [[{}, Math.floor(Date.now() / 1000) - 437_000]],
}

/** What each expression that the page asks gives, by how it begins. */
export const QUERIES = [
  [
    /^1 - avg by \(instance\) \(rate\(node_cpu/,
    (t, seed) => [[{}, METRICS.cpu(t, seed).reduce((sum, [, value]) => sum + value, 0)]],
  ],
  [/^avg by \(mode\) \(rate\(node_cpu/, METRICS.cpu],
  [/^1 - node_memory_MemAvailable/, (t, seed) => [[{}, 1 - METRICS.available(t, seed)[0][1] / (16 * GiB)]]],
  [/^node_memory_MemTotal_bytes.* - /, (t, seed) => [[{}, 16 * GiB - METRICS.available(t, seed)[0][1]]]],
  [/^node_memory_MemAvailable_bytes/, METRICS.available],
  [/^node_load1\b/, METRICS.load1],
  [/^node_load5/, METRICS.load5],
  [/^node_load15/, METRICS.load15],
  [/^1 - node_filesystem_avail/, METRICS.filesystem],
  [/^rate\(node_disk_read_bytes/, METRICS.read],
  [/^rate\(node_disk_written_bytes/, METRICS.written],
  [/^rate\(node_network_receive/, METRICS.receive],
  [/^rate\(node_network_transmit/, METRICS.transmit],
  [/^node_boot_time_seconds/, METRICS.boot],
]

export const iso = (t) => new Date(t * 1000).toISOString()
export const now = () => Date.now() / 1000

function agent(instance, state, extra = {}) {
  const age_s = state === 'up' ? 2 : state === 'silent' ? 340 : 86_000
  return {
    job: 'node',
    instance,
    labels: { job: 'node', instance, site: 'berlin' },
    state,
    last_sample_at: iso(now() - age_s),
    received_at: iso(now() - age_s),
    lag_s: 0.2,
    epoch: 'c0ffee',
    first_seq: 1,
    last_seq: 17_280,
    messages: 17_280,
    missing: 0,
    samples: 6_012_440,
    version: '0.1.0',
    interval_s: 5,
    ...extra,
  }
}

function alert(alertname, instance, severity, state, since_s, summary, value) {
  return {
    labels: { alertname, instance, severity, job: 'node' },
    annotations: { summary },
    state,
    activeAt: iso(now() - since_s),
    value: String(value),
  }
}

function rule(name, query, duration, severity, state = 'inactive') {
  return {
    type: 'alerting',
    name,
    query,
    duration,
    labels: { severity },
    annotations: {},
    state,
    health: 'ok',
    alerts: [],
  }
}

/** What a fleet of six hosts looks like; every field may be replaced. */
export function fleet() {
  return {
    agents: [
      agent('web-1', 'up'),
      agent('web-2', 'up'),
      agent('db-1', 'up', { missing: 3 }),
      agent('edge-berlin-07', 'silent'),
      agent('build-old', 'gone'),
      agent(HOSTILE, 'up', { job: HOSTILE_LINK }),
    ],
    pipeline: { generated: 36_074_640, stored: 36_074_282, dropped: 0, in_flight: 358 },
    alerts: [
      alert(
        'FilesystemAlmostFull',
        'db-1',
        'warning',
        'firing',
        4_300,
        '/var/lib/postgresql on db-1 is 83 % full',
        0.83,
      ),
      alert(
        'AgentSilent',
        'edge-berlin-07',
        'critical',
        'firing',
        280,
        'No samples from edge-berlin-07 for 5 minutes',
        340,
      ),
      alert('HighLoad', 'web-1', 'warning', 'pending', 40, 'Load of web-1 is above 4 for each core', 4.2),
      {
        ...alert(HOSTILE, HOSTILE, 'warning', 'pending', 10, HOSTILE, 1),
        annotations: { summary: HOSTILE, runbook_url: HOSTILE_LINK },
      },
    ],
    transitions: [
      ['AgentSilent', 'edge-berlin-07', 'critical', 'pending', 'firing', 280, 340],
      ['AgentSilent', 'edge-berlin-07', 'critical', 'inactive', 'pending', 340, 60],
      ['FilesystemAlmostFull', 'db-1', 'warning', 'pending', 'firing', 4_300, 0.83],
      ['HighLoad', 'web-1', 'warning', 'firing', 'inactive', 7_900, 1.2],
      ['HighLoad', 'web-1', 'warning', 'pending', 'firing', 9_100, 5.1],
    ].map(([name, instance, severity, from, to, ago, value], index) => ({
      id: 100 - index,
      rule: name,
      severity,
      labels: { alertname: name, instance, severity },
      annotations: {},
      from,
      to,
      at: iso(now() - ago),
      value,
    })),
    groups: [
      {
        name: 'host',
        file: 'built in',
        interval: 15,
        rules: [
          rule(
            'HighCPU',
            '1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[2m])) > 0.9',
            300,
            'warning',
          ),
          rule(
            'HighMemory',
            '1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes > 0.95',
            300,
            'warning',
          ),
          rule(
            'FilesystemAlmostFull',
            '1 - node_filesystem_avail_bytes / node_filesystem_size_bytes > 0.8',
            60,
            'warning',
            'firing',
          ),
          rule('HighLoad', 'node_load5 > 4', 300, 'warning', 'pending'),
          { ...rule('AgentSilent', '', 0, 'critical', 'firing'), noData: 60 },
        ],
      },
    ],
    inbox: [
      {
        id: 2,
        at: iso(now() - 278),
        receiver: 'inbox',
        status: 'firing',
        title: '[FIRING:1] AgentSilent edge-berlin-07',
        body: 'No samples from edge-berlin-07 for 5 minutes',
        labels: { alertname: 'AgentSilent' },
        alerts: [
          {
            status: 'firing',
            labels: { alertname: 'AgentSilent', instance: 'edge-berlin-07', severity: 'critical' },
          },
        ],
        read: false,
      },
      {
        id: 1,
        at: iso(now() - 7_880),
        receiver: 'inbox',
        status: 'resolved',
        title: '[RESOLVED] HighLoad web-1',
        body: 'Load of web-1 is above 4 for each core',
        labels: { alertname: 'HighLoad' },
        alerts: [
          { status: 'resolved', labels: { alertname: 'HighLoad', instance: 'web-1', severity: 'warning' } },
        ],
        read: true,
      },
      {
        id: 0,
        at: iso(now() - 90_000),
        receiver: HOSTILE,
        status: 'firing',
        title: HOSTILE,
        body: `${HOSTILE}\n${HOSTILE_LINK}`,
        labels: { alertname: HOSTILE },
        alerts: [{ status: 'firing', labels: { alertname: HOSTILE, instance: HOSTILE } }],
        read: true,
      },
    ],
    deliveries: [
      {
        id: 12,
        group_key: '{}:{alertname="AgentSilent"}',
        receiver: 'inbox',
        channel: 'inbox',
        status: 'firing',
        state: 'sent',
        attempts: 1,
        due_at: iso(now() - 279),
        sent_at: iso(now() - 278),
        reason: 'first notification of the group',
        error: null,
      },
      {
        id: 11,
        group_key: '{}:{alertname="AgentSilent"}',
        receiver: 'on-call',
        channel: 'webhook',
        status: 'firing',
        state: 'pending',
        attempts: 4,
        due_at: iso(now() + 30),
        sent_at: null,
        reason: 'first notification of the group',
        error: 'HTTP 503 from hooks.example.net; retried in 32 s',
      },
      {
        id: 10,
        group_key: '{}:{alertname="HighLoad"}',
        receiver: 'mail',
        channel: 'email',
        status: 'resolved',
        state: 'failed',
        attempts: 8,
        due_at: iso(now() - 7_000),
        sent_at: null,
        reason: 'all alerts of the group resolved',
        error: 'SMTP 550 mailbox unavailable',
      },
    ],
    /** Instants (unix seconds) for which hosts have no samples. */
    gap: [now() - 520, now() - 400],
    /** No list is longer, whatever its limit. */
    cap: Infinity,
    /** Paths that answer 500. */
    broken: new Set(),
  }
}

/** What a host sends at an instant, as the stream tells it. */
export function reading(t, seed) {
  const values = {
    node_memory_MemTotal_bytes: 16 * GiB,
    node_memory_MemAvailable_bytes: METRICS.available(t, seed)[0][1],
    node_load1: METRICS.load1(t, seed)[0][1],
    node_load5: METRICS.load5(t, seed)[0][1],
    node_load15: METRICS.load15(t, seed)[0][1],
  }
  for (const [labels, used] of METRICS.filesystem()) {
    const text = Object.entries(labels)
      .map(([name, value]) => `${name}=${JSON.stringify(value)}`)
      .join(',')
    values[`node_filesystem_size_bytes{${text}}`] = 1e12
    values[`node_filesystem_avail_bytes{${text}}`] = (1 - used) * 1e12
  }
  return values
}
