/*
 * log.h
 *	  The log, on standard error: a JSON object a line.
 *
 * Never pass a key, a secret, a prompt or an answer.
 *
 * Once log_start has been called, lines are written by a thread of the log's own:
 * whoever logs never waits for the disk or for whoever reads them. Lines that
 * find no room, or cannot be written, are lost and counted.
 */
#ifndef REGPILOT_LOG_H
#define REGPILOT_LOG_H

#include "buffer.h"

#include <stdbool.h>
#include <stdint.h>

/* False after a message. */
extern bool log_start(void) __attribute__((warn_unused_result));

/* Writes what is left, if that is possible within a second. What comes later may be lost. */
extern void log_stop(void);

/* What an operator may want to know, and should look into. */
extern void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
extern void log_line(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Begins a line of that level with the time; the caller adds members, each with a comma before it. */
extern void log_begin(Buffer *line, const char *level);

/* Ends, logs and frees the line. */
extern void log_end(Buffer *line);

/* Lines lost since the start. */
extern int64_t log_lost(void);

#endif
