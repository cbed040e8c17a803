/*
 * recorder.h
 *	  Reports the outcomes of requests to the database.
 *
 * A thread with a connection of its own sends them in batches, so that no
 * request waits for it.
 */
#ifndef REGPILOT_RECORDER_H
#define REGPILOT_RECORDER_H

#include <stdbool.h>
#include <stdint.h>

/* What came of one authorised request. */
typedef struct Outcome
{
	char key_id[37];
	char environment[16]; /* that it counts under */
	int status;			  /* as answered; 499: the client went away */
	int latency;		  /* ms */
	char *model;		  /* malloc'd; NULL: none was involved */
	int64_t prompt_tokens;
	int64_t completion_tokens;
} Outcome;

/* Starts the thread; false after a message. */
extern bool recorder_start(void) __attribute__((warn_unused_result));

/* Takes over outcome->model. When the queue is full the outcome is dropped, and that is logged. */
extern void recorder_add(const Outcome *outcome);

/* Sends what is queued, if the database can be reached, and ends the thread. */
extern void recorder_stop(void);

#endif
