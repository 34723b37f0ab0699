// The page's side of the worker: one request at a time, in order, so that a stale one can still be dropped.
import type { Calls, Op, Reply, Request } from './protocol';

/** The request was dropped because nobody waits for it any more. */
export class Stale extends Error {}

/** The worker is gone: the device was lost, memory ran out, or the module panicked. */
export class Gone extends Error {}

interface Job {
  request: Request;
  wanted: () => boolean;
  progress: ((value: never) => void) | undefined;
  resolve: (value: never) => void;
  reject: (error: Error) => void;
}

export interface Events {
  loading(loaded: number, total: number): void;
  /** Nothing more comes from this client; it must be replaced. */
  gone(reason: string): void;
}

/** The part of `Worker` that is used, so that tests can stand in for it. */
export interface Port {
  postMessage(message: Request, transfer?: Transferable[]): void;
  terminate(): void;
  onmessage: ((event: MessageEvent<Reply>) => void) | null;
  onerror: ((event: ErrorEvent) => void) | null;
}

export class Client {
  readonly #port: Port;
  readonly #events: Events;
  #queue: Job[] = [];
  #running: Job | undefined;
  #next = 1;
  #gone: string | undefined;

  constructor(port: Port, events: Events) {
    this.#port = port;
    this.#events = events;
    port.onmessage = (event) => this.#receive(event.data);
    port.onerror = (event) => this.#fail(event.message || 'the worker stopped');
  }

  /** Queues a call. `wanted` is asked just before it is sent; urgent calls go before all that wait. */
  call<K extends Op>(
    op: K,
    args: Parameters<Calls[K]>,
    options: { wanted?: () => boolean; urgent?: boolean; progress?: (value: never) => void; transfer?: Transferable[] } = {},
  ): ReturnType<Calls[K]> {
    const promise = new Promise((resolve, reject) => {
      if (this.#gone !== undefined) {
        reject(new Gone(this.#gone));
        return;
      }
      const request: Request = { id: this.#next++, op, args };
      const job: Job = { request, wanted: options.wanted ?? (() => true), progress: options.progress, resolve, reject };
      if (options.urgent === true) this.#queue.unshift(job);
      else this.#queue.push(job);
      this.#advance();
    });
    return promise as ReturnType<Calls[K]>;
  }

  /** Stops the worker; all that wait are told why. */
  close(reason: string) {
    if (this.#gone !== undefined) return;
    this.#gone = reason;
    this.#port.terminate();
    const jobs = [this.#running, ...this.#queue];
    this.#running = undefined;
    this.#queue = [];
    for (const job of jobs) job?.reject(new Gone(reason));
  }

  #fail(reason: string) {
    if (this.#gone !== undefined) return;
    this.close(reason);
    this.#events.gone(reason);
  }

  #advance() {
    while (this.#running === undefined) {
      const job = this.#queue.shift();
      if (job === undefined) return;
      if (!job.wanted()) {
        job.reject(new Stale('no longer wanted'));
        continue;
      }
      this.#running = job;
      try {
        this.#port.postMessage(job.request);
      } catch (error) {
        this.#running = undefined;
        job.reject(error instanceof Error ? error : new Error(String(error)));
      }
    }
  }

  #receive(reply: Reply) {
    if (this.#gone !== undefined) return;
    if ('event' in reply) {
      if (reply.event === 'loading') this.#events.loading(reply.loaded, reply.total);
      else this.#fail(reply.reason);
      return;
    }
    const job = this.#running;
    if (job === undefined || job.request.id !== reply.id) return;
    if ('progress' in reply) {
      job.progress?.(reply.progress as never);
      return;
    }
    this.#running = undefined;
    if ('error' in reply) {
      job.reject(new Error(reply.error));
      if (reply.fatal) {
        this.#fail(reply.error);
        return;
      }
    } else {
      job.resolve(reply.value as never);
    }
    this.#advance();
  }
}
