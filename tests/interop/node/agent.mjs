// An agent on Elastic's OpAMP client for Node.js: it says what it is offered, a JSON line an event.
import { createOpAMPClient, RemoteConfigStatuses, AgentCapabilities } from '@elastic/opamp-client-node';

const [endpoint, name] = process.argv.slice(2);
const say = (event, more = {}) => console.log(JSON.stringify({ event, ...more }));

const client = createOpAMPClient({
  endpoint,
  heartbeatIntervalSeconds: 0.5,
  capabilities: 
    AgentCapabilities.AgentCapabilities_AcceptsRemoteConfig | AgentCapabilities.AgentCapabilities_ReportsRemoteConfig,
  onMessage: (message) => {
    if (message.remoteConfig) {
      const hash = message.remoteConfig.configHash;
      say('config', { hash: Buffer.from(hash).toString('hex') });
      client.setRemoteConfigStatus({
        status: RemoteConfigStatuses.RemoteConfigStatuses_APPLIED,
        lastRemoteConfigHash: hash,
      });
    }
  },
});
client.setAgentDescription({
  identifyingAttributes: { 'service.name': 'node', 'service.instance.id': name },
  nonIdentifyingAttributes: { tier: 'production' },
});
client.start();
say('started');
process.stdin.resume();
process.stdin.on('end', async () => {
  await client.shutdown();
  process.exit(0);
});
