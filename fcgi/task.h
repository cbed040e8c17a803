/*
 * task.h
 *	  Tasks: threads of control so cheap that each connection has one of its own.
 *
 * A few threads run all tasks. A task runs until it waits, by one of the functions
 * below; its thread, which is the same for all of its life, goes on with another one
 * meanwhile. So whatever else blocks holds up all tasks of the thread, and nobody may
 * wait while holding a lock.
 */
#ifndef REGPILOT_TASK_H
#define REGPILOT_TASK_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

/* Bytes of a task's stack; pages of it that are never touched cost nothing. */
#define TASK_STACK_SIZE (1024 * 1024)

typedef struct Task Task;

/* Starts the threads that run tasks; false after a message. */
extern bool tasks_start(int threads) __attribute__((warn_unused_result));

/* Ends these threads, when all tasks have ended or may be forgotten as they are. */
extern void tasks_stop(void);

/*
 * A task that begins at its first task_wake(), on the thread that has the fewest. NULL,
 * and errno, for want of memory.
 */
extern Task *task_create(void (*function)(void *), void *argument)
	__attribute__((warn_unused_result));

/* The same on the thread that calls it, which is running a task. */
extern Task *task_create_here(void (*function)(void *), void *argument)
	__attribute__((warn_unused_result));

/* The task that calls this; NULL: it is none. */
extern Task *task_self(void);

/* As poll(2), which it is where no task calls it. */
extern int task_poll(struct pollfd *polled, nfds_t count, int timeout);

typedef enum TaskEvent
{
	TASK_TIMED_OUT,
	TASK_WOKEN,
	TASK_READABLE
} TaskEvent;

/* Waits for task_wake(), for the descriptor (-1: none) to be readable, until the deadline of clock_ms(). */
extern TaskEvent task_wait(int fd, int64_t deadline);

/*
 * Ends the task's present task_wait(), or else its next one. From any thread; the caller
 * knows that the task has not ended.
 */
extern void task_wake(Task *task);

/* Lets other tasks of the thread run that can. */
extern void task_yield(void);

/* Runs a function that may block: in a thread of its own, for whose end the task waits. */
extern void task_call(void (*function)(void *), void *argument);

/* Runs a function as a task, for whose end the calling thread waits; false for want of memory. */
extern bool task_run(void (*function)(void *), void *argument) __attribute__((warn_unused_result));

/*
 * Has handler called with the descriptor and its events (EPOLLIN and so on) when one of
 * them is there, by the thread that runs the calling task or handler, outside of any
 * task. events 0: no more; to be said before the descriptor is closed.
 */
extern bool task_watch(int fd, uint32_t events, void (*handler)(int fd, uint32_t events));

#endif
