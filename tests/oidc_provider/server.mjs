// A real OpenID Connect provider (panva/node-oidc-provider, certified) for tests: people without passwords, everything in
// memory, new keys at each start. Takes its settings as JSON on standard input, which it also lives and dies with; says
// "ready" on standard output.
//
//   {"port", "cert", "key": PEM, "clients": [...], "people": {NAME: {claim: value}}, "inIdToken": bool}

import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:https';
import { createInterface } from 'node:readline';

import Provider from 'oidc-provider';

const lines = createInterface({ input: process.stdin });
const [text] = await once(lines, 'line');
lines.on('close', () => process.exit(0));
const settings = JSON.parse(text);

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const provider = new Provider(`https://localhost:${settings.port}`, {
  clients: settings.clients,
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'RS256' }] },
  cookies: { keys: [randomUUID()] },
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['preferred_username', 'name'] },
  // By the standard, claims of scopes come from the userinfo endpoint; many providers put them into the ID token.
  conformIdTokenClaims: !settings.inIdToken,
  features: { deviceFlow: { enabled: true }, devInteractions: { enabled: true } },
  findAccount: (ctx, id) => settings.people[id] && {
    accountId: id,
    claims: () => ({ sub: id, ...settings.people[id] }),
  },
  ttl: { DeviceCode: (ctx, code, client) => client.clientName === 'brief' ? 1 : 300, AccessToken: 600, IdToken: 600, Grant: 600, Interaction: 600, Session: 600 },
});
// So that nobody has to wait for 5 s.
provider.use(async (ctx, next) => {
  await next();
  if (ctx.oidc?.route === 'device_authorization' && ctx.status === 200) ctx.body.interval = 1;
});

createServer({ cert: settings.cert, key: settings.key }, provider.callback())
  .listen(settings.port, 'localhost', () => console.log('ready'));
