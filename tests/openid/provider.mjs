// An OpenID provider for tests, on loopback: panva's oidc-provider, with accounts, and with ways to misbehave.
//
//   node provider.mjs [--device-interval=1]
//
// The first line on stdout is {"port", "issuer"}; all else goes to stderr. It ends with its standard input.
// A login needs no browser that runs scripts: the login form has the field `login`.
// POST /_test {"mode": "wrong-aud"} makes every ID token from then on wrong in that way; {"mode": "ok"} ends that;
// {"rotate": true} replaces the signing keys.
console.info = console.error; // oidc-provider prints its notices there
import * as crypto from 'node:crypto';
import * as http from 'node:http';
import { parseArgs } from 'node:util';
import { Provider, interactionPolicy } from 'oidc-provider';

const { values: options } = parseArgs({ options: { 'device-interval': { type: 'string', default: '1' } } });
const ACCOUNTS = {
  alice: { email: 'alice@example.test', groups: ['platform'] },
  bob: { email: 'bob@example.test', groups: ['viewers', 'team-a'] },
  mallory: { email: 'mallory@example.test' },
};
const CLIENT_ID = 'opamp';
const CLIENT_SECRET = 'a secret of + and % and : that must be encoded';

const now = () => Math.floor(Date.now() / 1000);
const base64 = (value) => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url');
const newKey = () => crypto.generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
let key;
let kid;

function sign(header, payload, signer) {
  const input = `${base64(header)}.${base64(payload)}`;
  if (header.alg === 'none') return `${input}.`;
  const signature = header.alg === 'HS256'
    ? crypto.createHmac('sha256', signer).update(input).digest()
    : crypto.sign('sha256', Buffer.from(input), signer);
  return `${input}.${signature.toString('base64url')}`;
}

const rs256 = (header, payload) => sign({ ...header, alg: 'RS256', kid }, payload, key);
const publicPem = () => crypto.createPublicKey(key).export({ type: 'spki', format: 'pem' });
const ID_TOKENS = { // mode -> (header, payload, text of a good token) -> a bad one
  'wrong-aud': (h, p) => rs256(h, { ...p, aud: 'someone-else' }),
  'wrong-azp': (h, p) => rs256(h, { ...p, aud: [p.aud, 'someone-else'], azp: 'someone-else' }),
  'wrong-iss': (h, p) => rs256(h, { ...p, iss: 'http://127.0.0.1:9/evil' }),
  'wrong-nonce': (h, p) => rs256(h, { ...p, nonce: 'of another login' }),
  'no-nonce': (h, { nonce, ...p }) => rs256(h, p),
  expired: (h, p) => rs256(h, { ...p, iat: now() - 7200, exp: now() - 3600 }),
  'just-expired': (h, p) => rs256(h, { ...p, iat: now() - 600, exp: now() - 30 }),
  'no-exp': (h, { exp, ...p }) => rs256(h, p),
  'future-iat': (h, p) => rs256(h, { ...p, iat: now() + 3600, exp: now() + 7200 }),
  'no-sub': (h, { sub, ...p }) => rs256(h, p),
  'other-key': (h, p) => sign({ ...h, alg: 'RS256' }, p, newKey()),
  tampered: (h, p, text) => text.split('.').map((part, i) => (i === 1 ? base64({ ...p, groups: ['tampered'] }) : part)).join('.'),
  'alg-none': (h, p) => sign({ alg: 'none' }, p),
  'hs256-secret': (h, p) => sign({ alg: 'HS256' }, p, CLIENT_SECRET),
  'hs256-public-key': (h, p) => sign({ alg: 'HS256', kid }, p, publicPem()),
  garbage: () => 'not.a.jwt',
};
let mode = 'ok';

const escaped = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const page = (title, body = '') => `<!doctype html><title>${escaped(title)}</title><h1>${escaped(title)}</h1>${body}`;

async function bodyOf(request) {
  let text = '';
  for await (const chunk of request) text += chunk;
  return text;
}

function makeProvider(issuer) {
  key = newKey();
  kid = crypto.randomBytes(4).toString('hex');
  const policy = interactionPolicy.base();
  policy.get('consent').checks.remove('native_client_prompt');
  const provider = new Provider(issuer, {
    clients: [{
      client_id: CLIENT_ID,
      client_secret: CLIENT_SECRET,
      application_type: 'native', // any port of a loopback redirect
      redirect_uris: ['http://127.0.0.1/callback'],
      grant_types: ['authorization_code', 'urn:ietf:params:oauth:grant-type:device_code'],
      response_types: ['code'],
      token_endpoint_auth_method: 'client_secret_basic',
    }],
    jwks: { keys: [{ ...key.export({ format: 'jwk' }), use: 'sig', alg: 'RS256', kid }] },
    cookies: { keys: [crypto.randomBytes(16).toString('hex')] },
    pkce: { required: () => true },
    claims: { openid: ['sub'], email: ['email', 'email_verified'], groups: ['groups'] },
    conformIdTokenClaims: false, // groups are in the ID token
    features: {
      devInteractions: { enabled: false },
      deviceFlow: {
        enabled: true,
        userCodeInputSource(ctx, form, out, error) { ctx.body = page('Enter code', error?.name === 'AbortedError' ? '' : form); },
        userCodeConfirmSource(ctx, form) { ctx.body = page('Confirm', form); },
        successSource(ctx) { ctx.body = page('Done'); },
      },
    },
    interactions: { policy, url: (ctx, interaction) => `/interaction/${interaction.uid}` },
    findAccount(ctx, id) {
      if (!Object.hasOwn(ACCOUNTS, id)) return undefined;
      return { accountId: id, claims: () => ({ sub: id, email_verified: true, ...ACCOUNTS[id] }) };
    },
    async loadExistingGrant(ctx) { // everything is granted
      const { oidc } = ctx;
      const grant = new oidc.provider.Grant({ clientId: oidc.client.clientId, accountId: oidc.session.accountId });
      grant.addOIDCScope([...oidc.requestParamScopes].join(' '));
      await grant.save();
      return grant;
    },
    renderError(ctx, out) { ctx.body = page('Error', escaped(JSON.stringify(out))); },
  });

  const issue = provider.IdToken.prototype.issue;
  provider.IdToken.prototype.issue = async function issueOrMisbehave(about) {
    const token = await issue.call(this, about);
    if (about?.use !== 'idtoken' || !ID_TOKENS[mode]) return token;
    const [header, payload] = token.split('.', 2).map((part) => JSON.parse(Buffer.from(part, 'base64url')));
    return ID_TOKENS[mode](header, payload, token);
  };

  provider.use(async (ctx, next) => {
    if (ctx.path.startsWith('/interaction/')) {
      const details = await provider.interactionDetails(ctx.req, ctx.res);
      const finish = async (result) => { ctx.redirect(await provider.interactionResult(ctx.req, ctx.res, result)); ctx.status = 303; };
      if (details.prompt.name !== 'login') return finish({ [details.prompt.name]: {} });
      if (ctx.method === 'POST') {
        const form = new URLSearchParams(await bodyOf(ctx.req));
        if (form.get('abort')) return finish({ error: 'access_denied', error_description: 'the person said no' });
        if (Object.hasOwn(ACCOUNTS, form.get('login') ?? '')) return finish({ login: { accountId: form.get('login') } });
      }
      ctx.status = 200;
      ctx.type = 'html';
      ctx.body = page('Sign in', `<form method="post" action="${ctx.path}"><input name="login" value=""></form>`);
      return undefined;
    }
    await next();
    if (ctx.path === '/device/auth' && ctx.body?.device_code) ctx.body.interval = Number(options['device-interval']);
    if (ctx.path === '/token' && ctx.body?.id_token && mode === 'no-id-token') delete ctx.body.id_token;
    if (ctx.path.startsWith('/.well-known/') && mode === 'other-issuer') ctx.body.issuer = 'http://127.0.0.1:9/evil';
    return undefined;
  });
  return provider.callback();
}

let issuer;
let handler;
const server = http.createServer(async (request, response) => {
  if (request.url !== '/_test') return handler(request, response);
  const command = JSON.parse(await bodyOf(request));
  if (command.mode) mode = command.mode;
  if (command.rotate) handler = makeProvider(issuer);
  response.writeHead(200, { 'content-type': 'application/json' });
  return response.end(JSON.stringify({ modes: Object.keys(ID_TOKENS) }));
});
server.listen(0, '127.0.0.1', () => {
  const { port } = server.address();
  issuer = `http://127.0.0.1:${port}`;
  handler = makeProvider(issuer);
  process.stdout.write(`${JSON.stringify({ port, issuer })}\n`);
});
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
