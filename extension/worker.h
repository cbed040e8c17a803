/*-------------------------------------------------------------------------
 *
 * worker.h
 *		The background worker that writes the usage counters to their table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_WORKER_H
#define REGPILOT_WORKER_H

/* Register the worker.  Called once, while the server preloads the module. */
extern void worker_init(void);

#endif /* REGPILOT_WORKER_H */
