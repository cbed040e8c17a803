/*
 * gate.c
 *	  Lets so many tasks in at a time; others wait, first come, first served.
 *
 * Who leaves hands its place to the first that waits, who is then no longer among
 * the waiters: so a task knows whether its time was up before that or not.
 */
#include "gate.h"
#include "task.h"

/* Lives on the stack of the task that waits. */
typedef struct Waiter
{
	Task *task;
	bool admitted; /* protected by the gate's lock */
	TAILQ_ENTRY(Waiter) link;
} Waiter;

void
gate_init(Gate *gate, int places, int most)
{
	pthread_mutex_init(&gate->lock, NULL);
	gate->places = places;
	gate->most = most;
	gate->count = 0;
	TAILQ_INIT(&gate->waiters);
}

bool
gate_enter(Gate *gate, int64_t deadline)
{
	Waiter self = {.task = task_self()};
	bool waits = false;

	pthread_mutex_lock(&gate->lock);
	if (gate->places > 0)
	{
		gate->places--;
		self.admitted = true;
	}
	else if (gate->count < gate->most)
	{
		gate->count++;
		TAILQ_INSERT_TAIL(&gate->waiters, &self, link);
		waits = true;
	}
	pthread_mutex_unlock(&gate->lock);

	if (!waits || task_wait(-1, deadline) == TASK_WOKEN)
		return self.admitted || waits;

	pthread_mutex_lock(&gate->lock);
	if (!self.admitted)
	{
		TAILQ_REMOVE(&gate->waiters, &self, link);
		gate->count--;
	}
	pthread_mutex_unlock(&gate->lock);
	/* Admitted in this very moment: somebody is about to wake us. */
	if (self.admitted)
		task_wait(-1, INT64_MAX);
	return self.admitted;
}

void
gate_leave(Gate *gate)
{
	Task *next = NULL;
	Waiter *waiter;

	pthread_mutex_lock(&gate->lock);
	waiter = TAILQ_FIRST(&gate->waiters);
	if (waiter == NULL)
		gate->places++;
	else
	{
		TAILQ_REMOVE(&gate->waiters, waiter, link);
		gate->count--;
		waiter->admitted = true;
		next = waiter->task;
	}
	pthread_mutex_unlock(&gate->lock);
	if (next != NULL)
		task_wake(next);
}
