// Calls: of the relay (/v1), and of the API server, both with the permissions of the user of rproc.

export interface Condition { type: string; status: string; reason: string; message: string; lastTransitionTime: string }
export interface Exit { code?: number; signal?: string; reason?: string; message?: string; source?: string }
export interface Attempt {
  number: number; begunAt?: string; grantedAt?: string; startedAt?: string; pausedAt?: string; finishedAt?: string;
  podName?: string; node?: string; exit?: Exit;
  output?: { sealed?: boolean; stdout?: { bytes?: number }; stderr?: { bytes?: number } };
}
export interface Status {
  phase?: string; reason?: string; message?: string; attempt?: number; attempts?: Attempt[]; conditions?: Condition[];
  startedAt?: string; finishedAt?: string; duration?: string; exitCode?: number; signal?: string;
  output?: { stdoutBytes?: number; stderrBytes?: number };
}
export interface Process {
  metadata: {
    name: string; namespace: string; uid: string; creationTimestamp: string; deletionTimestamp?: string;
    labels?: Record<string, string>; resourceVersion: string;
  };
  spec: { image?: string; command?: string[]; args?: string[]; desiredState?: string; stdin?: boolean; tty?: boolean };
  status?: Status;
}
export interface KubeEvent {
  type?: string; reason?: string; message?: string; note?: string; count?: number;
  eventTime?: string; lastTimestamp?: string; firstTimestamp?: string; series?: { count?: number; lastObservedTime?: string };
  metadata: { creationTimestamp: string };
}
export interface Session { namespace: string; cluster: string; user?: string; version: string }
export interface MissingRule { kind: string; namespace?: string; apiGroups: string[]; resources: string[]; verbs: string[] }

/** A refusal or a failure: a problem of the relay, a Status of the API server, or a connection that broke. */
export class Problem extends Error {
  constructor(readonly status: number, detail: string, readonly rule?: MissingRule) {
    super(detail);
  }

  /** Whether another try may succeed. */
  get isTemporary(): boolean {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }

  static async of(response: Response): Promise<Problem> {
    const body = await response.json().catch(() => ({}));
    const detail = body.detail ?? body.message ?? `${response.status} ${response.statusText}`;
    return new Problem(response.status, String(detail), body.missingRule);
  }
}

const OBJECTS = '/apis/remoteprocess.dev/v1alpha1';

/** A request; anything but success is a {@link Problem}. */
export async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Problem(0, 'rproc does not answer. Does it still run?');
  }
  if (!response.ok) throw await Problem.of(response);
  return response;
}

function send(method: string, body: unknown): RequestInit {
  return { method, headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) };
}

/** The path of the processes of a namespace, or of all. */
export function objects(namespace: string): string {
  return namespace ? `${OBJECTS}/namespaces/${encodeURIComponent(namespace)}/remoteprocesses` : `${OBJECTS}/remoteprocesses`;
}

/** The path of a process at the relay. */
export function route(namespace: string, name: string, rest: string): string {
  return `/v1/namespaces/${encodeURIComponent(namespace)}/processes/${encodeURIComponent(name)}/${rest}`;
}

export async function session(): Promise<Session> {
  return (await ask('/session.json')).json();
}

/** The namespaces, if the user may list them. */
export async function namespaces(): Promise<string[]> {
  const list = await (await ask('/api/v1/namespaces?limit=1000')).json();
  return list.items.map((item: { metadata: { name: string } }) => item.metadata.name);
}

export async function events(process: Process): Promise<KubeEvent[]> {
  const { namespace, uid } = process.metadata;
  const query = new URLSearchParams({ fieldSelector: `involvedObject.uid=${uid}`, limit: '200' });
  const list = await (await ask(`/api/v1/namespaces/${encodeURIComponent(namespace)}/events?${query}`)).json();
  return list.items;
}

/** Whether the user has a right; `true` if that is not known, because the relay decides anyway. */
export async function may(namespace: string, verb: string, subresource = ''): Promise<boolean> {
  const attributes = { namespace, verb, group: 'remoteprocess.dev', resource: 'remoteprocesses', subresource };
  const review = { apiVersion: 'authorization.k8s.io/v1', kind: 'SelfSubjectAccessReview', spec: { resourceAttributes: attributes } };
  try {
    const answer = await ask('/apis/authorization.k8s.io/v1/selfsubjectaccessreviews', send('POST', review));
    return (await answer.json()).status.allowed;
  } catch {
    return true;
  }
}

export async function stop(process: Process, message: string): Promise<void> {
  const { namespace, name } = process.metadata;
  await ask(route(namespace, name, `stop?uid=${process.metadata.uid}`), send('POST', message ? { message } : {}));
}

export async function signal(process: Process, name: string): Promise<void> {
  const path = route(process.metadata.namespace, process.metadata.name, `signal?uid=${process.metadata.uid}`);
  await ask(path, send('POST', { signal: name, requestId: crypto.randomUUID() }));
}

/** Pauses or resumes, as `rproc pause` does. */
export async function desire(process: Process, desiredState: 'Paused' | 'Running', reason: string): Promise<void> {
  const { namespace, name, uid } = process.metadata;
  const annotations = { 'remoteprocess.dev/reason': reason || null };
  await ask(`${objects(namespace)}/${encodeURIComponent(name)}`, send('PATCH', { metadata: { uid, annotations }, spec: { desiredState } }));
}
