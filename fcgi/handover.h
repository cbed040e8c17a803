/*
 * handover.h
 *	  Replaces this process by a new one that serves on the same socket; and tells
 *	  the service manager who serves.
 *
 * The new process is the program of the same name with the same arguments: a newer
 * binary, if that has been replaced. It finds the listening socket as descriptor 0
 * and, as descriptor 3, a pipe on which it says that it serves. Until then, and
 * if it never does, the old process goes on.
 */
#ifndef REGPILOT_HANDOVER_H
#define REGPILOT_HANDOVER_H

#include <stdbool.h>

/* ---- in the old process ---- */

/*
 * Starts a new process. Gives a descriptor that becomes readable when that serves or
 * has failed; -1 after a message.
 */
extern int handover_begin(int listener, char **argv) __attribute__((warn_unused_result));

/* Closes the descriptor; false, after a message, when the new process does not serve: it is killed. */
extern bool handover_finish(int descriptor) __attribute__((warn_unused_result));

/* ---- in the new one ---- */

/* Whether this process is to take the place of another. To be called before anything opens a file. */
extern bool handover_expected(void);

/* ---- in each ---- */

/* Says that this process serves: to the one that it replaces, if any, and to the service manager. */
extern void handover_serving(void);

/* Tells the service manager that this process ends. */
extern void handover_stopping(void);

#endif
