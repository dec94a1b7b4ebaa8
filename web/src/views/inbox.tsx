/** What the inbox receiver was told, and how every notification was delivered. */
import { useState } from 'preact/hooks'
import * as api from '../api.ts'
import { useListener } from '../live.tsx'
import { Answer, Empty, InstanceName, Instant, Labels, Section, State, Table } from '../parts.tsx'
import { usePolled } from '../polling.ts'
import { More } from './more.tsx'

const EVERY_S = 10
const PAGE = 25

export function Inbox() {
  const [messageLimit, setMessageLimit] = useState(PAGE)
  const [deliveryLimit, setDeliveryLimit] = useState(PAGE)
  const messages = usePolled(
    (signal) => api.inbox({ limit: messageLimit }, signal),
    EVERY_S,
    '',
    messageLimit,
  )
  const deliveries = usePolled(
    (signal) => api.deliveries({ limit: deliveryLimit }, signal),
    EVERY_S,
    '',
    deliveryLimit,
  )
  const refresh = () => {
    messages.refresh()
    deliveries.refresh()
  }
  useListener({ transition: refresh, resumed: refresh })

  return (
    <>
      <div class="view-head">
        <h1 tabIndex={-1}>Inbox</h1>
      </div>
      <Section title="Messages" flush>
        <Answer of={messages}>
          {({ items, next }) => (
            <>
              {items.length === 0 ? (
                <Empty title="The inbox is empty">
                  Alerts that the routing sends to a receiver with an inbox are kept here.
                </Empty>
              ) : (
                <ul class="messages" aria-label="Messages">
                  {items.map((message) => (
                    <Message key={message.id} message={message} />
                  ))}
                </ul>
              )}
              <More next={next} onMore={() => setMessageLimit(messageLimit + PAGE)} />
            </>
          )}
        </Answer>
      </Section>
      <Section title="Deliveries" flush>
        <Answer of={deliveries}>
          {({ items, next }) => (
            <>
              <Deliveries deliveries={items} />
              <More next={next} onMore={() => setDeliveryLimit(deliveryLimit + PAGE)} />
            </>
          )}
        </Answer>
      </Section>
    </>
  )
}

function Message({ message }: { message: api.InboxMessage }) {
  const { status, title, body, at, receiver, alerts } = message
  return (
    <li class={`message ${status}`}>
      <div class="message-head">
        <State state={status} />
        <strong>{title}</strong>
        <span class="faint">{receiver}</span>
        <span class="message-when">
          <Instant at={at} />
        </span>
      </div>
      {body !== '' && <p class="body">{body}</p>}
      {alerts.length > 0 && (
        <details>
          <summary>{alerts.length === 1 ? '1 alert' : `${alerts.length} alerts`}</summary>
          <ul class="message-alerts">
            {alerts.map(({ status: state, labels }) => (
              <li key={JSON.stringify(labels)}>
                <State state={state ?? status} /> <span>{labels.alertname}</span>{' '}
                <InstanceName name={labels.instance} />
                <Labels labels={labels} except={['alertname', 'instance']} />
              </li>
            ))}
          </ul>
        </details>
      )}
    </li>
  )
}

function Deliveries({ deliveries }: { deliveries: readonly api.Delivery[] }) {
  if (deliveries.length === 0) return <Empty title="Nothing has been delivered yet" />
  return (
    <Table
      label="Deliveries"
      items={deliveries}
      keyOf={({ id }) => id}
      columns={[
        { title: 'When', cell: ({ sent_at, due_at }) => <Instant at={sent_at ?? due_at} /> },
        {
          title: 'State',
          cell: ({ state }) => (
            <State state={state} {...(state === 'pending' ? { tone: 'warning' as const } : {})} />
          ),
        },
        {
          title: 'Receiver',
          kind: 'lead',
          cell: ({ receiver, channel }) => (
            <span class="name-cell">
              <span>{receiver}</span>
              {channel !== receiver && <span class="faint">{channel}</span>}
            </span>
          ),
        },
        { title: 'Tells', cell: ({ status }) => status },
        { title: 'Attempts', kind: 'number', cell: ({ attempts }) => attempts },
        {
          title: 'Reason',
          kind: 'wide',
          cell: ({ reason, error }) => (
            <span class="reason">
              <span>{reason ?? ''}</span>
              {error !== null && error !== '' && <span class="critical-text">{error}</span>}
            </span>
          ),
        },
      ]}
    />
  )
}
