"""Processes that work for this one: beyond Python's lock, and a crash costs only what was asked for.

    with Workers(4, ["some.module:function"]) as workers:
        answer = workers.ask("some.module:function", b"what is asked")  # from any thread

A worker is a fresh interpreter with one thread, started when it is first needed. It answers one request at a
time, with a function that both sides know by name:

    def function(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[Buffer]]: ...

Requests and answers are short, and travel through pipes. What comes along with either, pixels above all, goes
through an anonymous file that both sides hold open (a memfd; elsewhere an unlinked temporary file; on Windows
there is none, and it follows on the pipe). It has no name, so however either side dies, nothing is left. It
is written and read, not mapped: where a mapped file shrinks, its reader crashes as well. A worker may keep
values between requests, each under a number; see `Kept`.

A worker that dies is replaced, and what it was asked is asked once more, of a fresh one: the first may have
been spoiled by an earlier request, or been killed for its neighbours' hunger for memory. A request must
therefore do no harm when it is carried out twice.

Workers ignore Ctrl-C and SIGTERM, which are their owner's business. They end when their owner does, however
that ended: on Linux at once, elsewhere after the request in hand.

Not `multiprocessing`: its children run the caller's script again, which needs a guard against that; its
messages are pickles; its shared memory has names, which outlive a kill -9.

No sandbox: a worker may do whatever its owner may. What is contained are crashes, and hangs of a
function that limits its time.
"""

from unet_batch.processes.pool import KEEP, Answer, Kept, Workers
from unet_batch.processes.process import TIMED_OUT, Died
from unet_batch.processes.serve import find_function, limit_time

__all__ = ["KEEP", "TIMED_OUT", "Answer", "Died", "Kept", "Workers", "find_function", "limit_time"]
