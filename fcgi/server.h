/*
 * server.h
 *	  Accepts connections and gives each a task, until a signal ends it.
 */
#ifndef REGPILOT_SERVER_H
#define REGPILOT_SERVER_H

#include "buffer.h"

#include <stdbool.h>

/*
 * Prepares the process: blocks signals in all threads to come. To be called
 * before anything starts a thread. False after a message.
 */
extern bool server_init(void) __attribute__((warn_unused_result));

/*
 * Serves until SIGTERM, SIGINT or SIGQUIT, or until a new process, which SIGHUP
 * starts with these arguments, has taken over; then until the running answers
 * are complete or config.shutdown_grace is over. False when tasks are still
 * busy then.
 */
extern bool server_run(int listener, char **argv);

extern void server_metrics(Buffer *out);

#endif
