// The one error class of the package. It must never carry a token: callers write errors to logs.
"use strict";

const PREFIX = "urn:portlease:problem:";

/**
 * Why a call was rejected. `type` is stable and meant for programs; `message` says what happened and what to do.
 *
 * Types of the API are the last words of its problem types (`held`, `exhausted`, `lease-lost`, …). Types of this package:
 * `unreachable` (no connection, or it broke), `timeout` (no answer in time), `aborted` (by an AbortSignal),
 * `bad-answer` (an answer that is not the API's), `invalid-argument`, `port-refused`, `spawn-failed`.
 */
class PortleaseError extends Error {
  /**
   * @param {string} type
   * @param {string} message
   * @param {{ status?: number | null, retryAfterMs?: number | null, holder?: object | null, cause?: unknown }} [details]
   */
  constructor(type, message, { status = null, retryAfterMs = null, holder = null, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "PortleaseError";
    this.type = type;
    this.status = status;
    this.retryAfterMs = retryAfterMs;
    this.holder = holder;
  }

  /** Makes the error for an answer of the API that is not a success. */
  static fromAnswer(status, problem, address) {
    const isProblem = typeof problem?.type === "string" && problem.type.startsWith(PREFIX);
    if (!isProblem) {
      const hint = "is this the address of the portlease API?";
      return new PortleaseError("bad-answer", `${address} answered ${status} without a problem document; ${hint}`, { status });
    }
    return new PortleaseError(problem.type.slice(PREFIX.length), String(problem.detail ?? `the API answered ${status}`), {
      status,
      retryAfterMs: problem.retry_after_s == null ? null : problem.retry_after_s * 1000,
      holder: problem.holder ?? null,
    });
  }
}

/** Returns the error for a call whose AbortSignal was triggered; its reason is the cause. */
function aborted(signal) {
  return new PortleaseError("aborted", "the call was aborted by its AbortSignal", { cause: signal.reason });
}

module.exports = { PortleaseError, aborted };
