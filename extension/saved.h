/*-------------------------------------------------------------------------
 *
 * saved.h
 *		What is in shared memory, saved in a file over a restart of the server.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_SAVED_H
#define REGPILOT_SAVED_H

/* Install the hook that loads the file.  Called once, after usage_init(). */
extern void saved_init(void);

/* For the worker: save at its end, should the postmaster be gone by then. */
extern void saved_attach_worker(void);

#endif /* REGPILOT_SAVED_H */
