/*
 * recorder.h
 *	  Reports the outcomes of requests to the database.
 *
 * A thread with a connection of its own sends them in batches, so that no
 * request waits for it. What it promises is in recorder.c.
 */
#ifndef REGPILOT_RECORDER_H
#define REGPILOT_RECORDER_H

#include "buffer.h"

#include <stdbool.h>
#include <stdint.h>

/* What came of one authorised request. */
typedef struct Outcome
{
	char key_id[37];
	char environment[16]; /* that it counts under */
	int status;			  /* as answered; 499: the client went away */
	int latency;		  /* ms */
	int first_byte;		  /* ms until the answer began; negative: it never did */
	char *model;		  /* malloc'd; NULL: none was involved */
	int64_t prompt_tokens;
	int64_t completion_tokens;
} Outcome;

/* Starts the thread; false after a message. */
extern bool recorder_start(void) __attribute__((warn_unused_result));

/* Takes over outcome->model. When the queue is full the outcome is lost. */
extern void recorder_add(const Outcome *outcome);

extern void recorder_metrics(Buffer *out);

/*
 * Sends what is queued and ends the thread. While the database is away it tries for
 * some seconds more.
 */
extern void recorder_stop(void);

#endif
