/*
 * gate.h
 *	  Lets so many tasks in at a time; others wait, first come, first served.
 */
#ifndef REGPILOT_GATE_H
#define REGPILOT_GATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

typedef struct Gate
{
	pthread_mutex_t lock;
	int places; /* that are free */
	int most;	/* tasks that may wait */
	int count;	/* that do */
	TAILQ_HEAD(, Waiter) waiters;
} Gate;

extern void gate_init(Gate *gate, int places, int most);

/* Waits for a place until the deadline of clock_ms(). False: too many wait, or for too long. */
extern bool gate_enter(Gate *gate, int64_t deadline) __attribute__((warn_unused_result));
extern void gate_leave(Gate *gate);

#endif
