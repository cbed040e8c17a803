/*
 * task.c
 *	  Tasks: threads of control so cheap that each connection has one of its own.
 *
 * Each thread runs a loop: all tasks that are ready, one after the other, then
 * epoll_wait(). A task that waits for a descriptor is entered with it in the loop's
 * table; so an event finds its task, and one that nobody waits for any more is ignored.
 *
 * Locking: what a loop has belongs to its thread, without a lock, except where it says
 * otherwise. Another thread that has something for it leaves that at its door
 * (Loop.arrivals).
 */
/* Its longjmp() would take a jump to another stack for a mistake. */
#undef _FORTIFY_SOURCE

#include "task.h"
#include "clock.h"
#include "log.h"

#include <bsd/sys/tree.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/queue.h>
#include <ucontext.h>
#include <unistd.h>

/* Events taken from the kernel at once. */
#define EVENTS_MAX 64
/* ms that a task waits at most when the kernel cannot tell of its descriptors */
#define WAIT_UNTOLD 50
/* Stacks kept for tasks to come. */
#define STACKS_KEPT 64
/* Bytes below a stack that end the process when it overflows. */
#define GUARD_SIZE (64 * 1024)
/* Bytes of stack of a thread that runs a task_call(), or handlers. */
#define THREAD_STACK_SIZE (1024 * 1024)

typedef struct Loop Loop;

struct Task
{
	Loop *loop;
	void (*function)(void *);
	void *argument;
	char *stack;
	jmp_buf context; /* where it goes on */
	bool begun;
	bool ended;

	/* what it waits for */
	bool waits;
	bool wakeable;
	bool woken;			   /* by a task_wake() that nobody has taken notice of */
	struct pollfd *polled; /* is told what has happened */
	nfds_t polled_count;
	int64_t deadline; /* INT64_MAX: none */

	TAILQ_ENTRY(Task) ready;
	RB_ENTRY(Task) timer; /* in Loop.timers while it waits with a deadline */
	bool arriving;		  /* protected by loop->lock, as is the next */
	STAILQ_ENTRY(Task) arrival;

	void *fiber; /* what a sanitizer knows of the stack */
};

/* Who is interested in a descriptor. */
typedef struct Interest
{
	Task *task;
	void (*handler)(int fd, uint32_t events);
} Interest;

struct Loop
{
	int epoll;
	Task *running;
	jmp_buf context; /* where the loop goes on */
	TAILQ_HEAD(Ready, Task) ready;
	RB_HEAD(Timers, Task) timers; /* by deadline */
	Interest *interest;			  /* by descriptor */
	int interests;

	pthread_t thread;
	_Atomic bool stopping;
	_Atomic int tasks;
	int alarm; /* eventfd: ends epoll_wait() */
	pthread_mutex_t lock;
	STAILQ_HEAD(, Task) arrivals; /* new or woken; protected by lock, as is the next */
	bool asleep;				  /* the alarm is to be raised for an arrival */

	const void *stack; /* for a sanitizer */
	size_t stack_size;
	void *fiber;
};

static Loop *loops;
static int loop_count;
static __thread Loop *this_loop;

static pthread_mutex_t stacks_lock = PTHREAD_MUTEX_INITIALIZER;
static char *stacks[STACKS_KEPT];
static int stacks_kept;

/* ---- sanitizers, which have to know of each change of stacks ---- */

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#else
#define __tsan_get_current_fiber() NULL
#define __tsan_create_fiber(flags) NULL
#define __tsan_destroy_fiber(fiber) ((void) 0)
#define __tsan_switch_to_fiber(fiber, flags) ((void) 0)
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#else
#define __sanitizer_start_switch_fiber(state, stack, size) ((void) 0)
#define __sanitizer_finish_switch_fiber(state, stack, size) ((void) 0)
#endif

/* ---- stacks ---- */

static char *
get_stack(void)
{
	char *stack = NULL;

	pthread_mutex_lock(&stacks_lock);
	if (stacks_kept > 0)
		stack = stacks[--stacks_kept];
	pthread_mutex_unlock(&stacks_lock);
	if (stack != NULL)
		return stack;

	stack = mmap(NULL, GUARD_SIZE + TASK_STACK_SIZE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
	if (stack == MAP_FAILED)
		return NULL;
	if (mprotect(stack, GUARD_SIZE, PROT_NONE) != 0)
	{
		munmap(stack, GUARD_SIZE + TASK_STACK_SIZE);
		return NULL;
	}
	return stack + GUARD_SIZE;
}

static void
put_stack(char *stack)
{
	pthread_mutex_lock(&stacks_lock);
	if (stacks_kept < STACKS_KEPT)
	{
		stacks[stacks_kept++] = stack;
		stack = NULL;
	}
	pthread_mutex_unlock(&stacks_lock);
	if (stack != NULL)
		munmap(stack - GUARD_SIZE, GUARD_SIZE + TASK_STACK_SIZE);
}

/* ---- changing from one stack to another ---- */

/* swapcontext() would do it, but for two system calls each time. */
static __attribute__((noinline)) void
change_stacks(jmp_buf from, jmp_buf to)
{
	if (_setjmp(from) == 0)
		_longjmp(to, 1);
}

static void task_main(void);

/* The same to a stack that has not been used. */
static __attribute__((noinline)) void
begin_stack(jmp_buf from, char *stack)
{
	ucontext_t context;

	getcontext(&context);
	context.uc_stack.ss_sp = stack;
	context.uc_stack.ss_size = TASK_STACK_SIZE;
	makecontext(&context, task_main, 0);
	if (_setjmp(from) == 0)
		setcontext(&context);
}

static void
run_task(Loop *loop, Task *task)
{
	void *state = NULL;

	(void) state;
	loop->running = task;
	__sanitizer_start_switch_fiber(&state, task->stack, TASK_STACK_SIZE);
	__tsan_switch_to_fiber(task->fiber, 0);
	if (task->begun)
		change_stacks(loop->context, task->context);
	else
	{
		task->begun = true;
		begin_stack(loop->context, task->stack);
	}
	__sanitizer_finish_switch_fiber(state, NULL, NULL);
	loop->running = NULL;

	if (task->ended)
	{
		__tsan_destroy_fiber(task->fiber);
		put_stack(task->stack);
		free(task);
		loop->tasks--;
	}
}

/* Gives the thread back to its loop, until the task is run again. */
static void
suspend(Task *task)
{
	Loop *loop = task->loop;
	void *state = NULL;

	(void) state;
	__sanitizer_start_switch_fiber(task->ended ? NULL : &state, loop->stack, loop->stack_size);
	__tsan_switch_to_fiber(loop->fiber, 0);
	change_stacks(task->context, loop->context);
	__sanitizer_finish_switch_fiber(state, &loop->stack, &loop->stack_size);
}

static void
task_main(void)
{
	Task *task = this_loop->running;

	__sanitizer_finish_switch_fiber(NULL, &task->loop->stack, &task->loop->stack_size);
	task->woken = false; /* that was to start it */
	task->wakeable = false;
	task->function(task->argument);
	task->ended = true;
	suspend(task);
}

/* ---- waiting ---- */

Task *
task_self(void)
{
	return this_loop != NULL ? this_loop->running : NULL;
}

/* Those of the same deadline are in some order. */
static int
compare_deadlines(const Task *a, const Task *b)
{
	if (a->deadline != b->deadline)
		return a->deadline < b->deadline ? -1 : 1;
	return a == b ? 0 : a < b ? -1 : 1;
}

RB_PROTOTYPE(Timers, Task, timer, compare_deadlines)
RB_GENERATE(Timers, Task, timer, compare_deadlines)

/* Suspends the task, which has said what it waits for, until that or its deadline has come. */
static void
wait_until(Task *task, int64_t deadline)
{
	task->deadline = deadline;
	task->waits = true;
	if (deadline != INT64_MAX)
		RB_INSERT(Timers, &task->loop->timers, task);
	suspend(task);
}

/* What the task has waited for is there. */
static void
make_ready(Task *task)
{
	if (!task->waits)
		return;
	task->waits = false;
	if (task->deadline != INT64_MAX)
		RB_REMOVE(Timers, &task->loop->timers, task);
	TAILQ_INSERT_TAIL(&task->loop->ready, task, ready);
}

/* The loop's entry of the descriptor; NULL: out of memory. */
static Interest *
find_interest(Loop *loop, int fd)
{
	if (fd >= loop->interests)
	{
		int more = fd < 128 ? 256 : 2 * fd;
		Interest *interest = realloc(loop->interest, (size_t) more * sizeof(Interest));

		if (interest == NULL)
			return NULL;
		memset(interest + loop->interests, 0, (size_t) (more - loop->interests) * sizeof(Interest));
		loop->interest = interest;
		loop->interests = more;
	}
	return &loop->interest[fd];
}

/* Has the kernel report these events of the descriptor, whether it does so already or not. */
static bool
subscribe(Loop *loop, int fd, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.fd = fd};

	return epoll_ctl(loop->epoll, EPOLL_CTL_MOD, fd, &event) == 0 ||
		   (errno == ENOENT && epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

/* poll()'s events are epoll's. */
static bool
await_descriptor(Task *task, const struct pollfd *polled)
{
	Interest *interest = find_interest(task->loop, polled->fd);

	if (interest == NULL ||
		!subscribe(task->loop, polled->fd, (uint32_t) polled->events | EPOLLONESHOT))
		return false;
	interest->task = task;
	return true;
}

static int
poll_descriptors(Task *task, struct pollfd *polled, nfds_t count, int64_t deadline)
{
	bool failed = false;
	int happened = 0;

	for (nfds_t i = 0; i < count; i++)
	{
		polled[i].revents = 0;
		if (polled[i].fd >= 0 && !await_descriptor(task, &polled[i]))
			failed = true;
	}
	/* Where that fails, others run all the same before the task tries again. */
	if (failed && deadline > clock_ms() + WAIT_UNTOLD)
		deadline = clock_ms() + WAIT_UNTOLD;
	task->polled = polled;
	task->polled_count = count;
	wait_until(task, deadline);
	task->polled_count = 0;
	for (nfds_t i = 0; i < count; i++)
	{
		if (polled[i].fd >= 0 && polled[i].fd < task->loop->interests)
			task->loop->interest[polled[i].fd].task = NULL;
		happened += polled[i].revents != 0;
	}
	if (failed)
		errno = ENOMEM;
	return failed ? -1 : happened;
}

int
task_poll(struct pollfd *polled, nfds_t count, int timeout)
{
	Task *task = task_self();

	if (task == NULL || timeout == 0)
		return poll(polled, count, timeout);
	return poll_descriptors(task, polled, count, timeout < 0 ? INT64_MAX : clock_ms() + timeout);
}

TaskEvent
task_wait(int fd, int64_t deadline)
{
	Task *task = task_self();
	struct pollfd polled = {.fd = fd, .events = POLLIN};
	int happened = 0;

	if (!task->woken)
	{
		task->wakeable = true;
		happened = poll_descriptors(task, &polled, 1, deadline);
		task->wakeable = false;
	}
	if (task->woken)
	{
		task->woken = false;
		return TASK_WOKEN;
	}

	/*
	 * An event may be of a descriptor that has been closed, and whose number ours has
	 * got, while a process that is being started still has it (see epoll(7)).
	 */
	return happened > 0 && poll(&polled, 1, 0) > 0 ? TASK_READABLE : TASK_TIMED_OUT;
}

void
task_yield(void)
{
	Task *task = task_self();

	TAILQ_INSERT_TAIL(&task->loop->ready, task, ready);
	suspend(task);
}

/* ---- handlers ---- */

static bool
watch(Loop *loop, int fd, uint32_t events, void (*handler)(int fd, uint32_t events))
{
	Interest *interest = find_interest(loop, fd);

	if (interest == NULL)
		return false;
	if (events == 0)
	{
		interest->handler = NULL;
		return epoll_ctl(loop->epoll, EPOLL_CTL_DEL, fd, NULL) == 0;
	}
	interest->handler = handler;
	return subscribe(loop, fd, events);
}

bool
task_watch(int fd, uint32_t events, void (*handler)(int fd, uint32_t events))
{
	return watch(this_loop, fd, events, handler);
}

/* ---- arrivals ---- */

/* A task, new or woken, is at the loop's door. */
static void
arrive(Loop *loop, Task *task)
{
	bool asleep = false;

	pthread_mutex_lock(&loop->lock);
	if (!task->arriving)
	{
		task->arriving = true;
		STAILQ_INSERT_TAIL(&loop->arrivals, task, arrival);
		asleep = loop->asleep;
		loop->asleep = false;
	}
	pthread_mutex_unlock(&loop->lock);
	if (asleep)
		eventfd_write(loop->alarm, 1);
}

static void
wake_here(Task *task)
{
	task->woken = true;
	if (task->wakeable)
		make_ready(task);
}

void
task_wake(Task *task)
{
	if (task->loop == this_loop)
		wake_here(task);
	else
		arrive(task->loop, task);
}

/* Lets in who has arrived. */
static void
take_arrivals(Loop *loop)
{
	Task *task;

	pthread_mutex_lock(&loop->lock);
	loop->asleep = false;
	while ((task = STAILQ_FIRST(&loop->arrivals)) != NULL)
	{
		STAILQ_REMOVE_HEAD(&loop->arrivals, arrival);
		task->arriving = false;
		wake_here(task);
	}
	pthread_mutex_unlock(&loop->lock);
}

/* ---- the loop ---- */

/* One has happened to the descriptor. */
static void
on_event(Loop *loop, int fd, uint32_t events)
{
	Interest interest = loop->interest[fd];

	if (interest.handler != NULL)
		interest.handler(fd, events);
	else if (interest.task != NULL)
	{
		for (nfds_t i = 0; i < interest.task->polled_count; i++)
		{
			if (interest.task->polled[i].fd == fd)
				interest.task->polled[i].revents = (short) events;
		}
		make_ready(interest.task);
	}
}

/* Waits until there is something to do. */
static void
wait_for_events(Loop *loop)
{
	struct epoll_event events[EVENTS_MAX];
	int timeout = 0;
	int count;

	if (TAILQ_EMPTY(&loop->ready))
	{
		Task *next = RB_MIN(Timers, &loop->timers);

		pthread_mutex_lock(&loop->lock);
		loop->asleep = STAILQ_EMPTY(&loop->arrivals);
		if (loop->asleep)
			timeout = next != NULL ? clock_remaining(next->deadline) : -1;
		pthread_mutex_unlock(&loop->lock);
	}

	count = epoll_wait(loop->epoll, events, EVENTS_MAX, timeout);
	for (int i = 0; i < count; i++)
		on_event(loop, events[i].data.fd, events[i].events);
}

static void
expire_timers(Loop *loop)
{
	Task *task = RB_MIN(Timers, &loop->timers);
	int64_t now = task != NULL ? clock_ms() : 0;

	while (task != NULL && task->deadline <= now)
	{
		make_ready(task);
		task = RB_MIN(Timers, &loop->timers);
	}
}

/* Runs the tasks that are ready; those that become so meanwhile have to wait. */
static void
run_ready(Loop *loop)
{
	Task *last = TAILQ_LAST(&loop->ready, Ready);
	Task *task = NULL;

	while (task != last)
	{
		task = TAILQ_FIRST(&loop->ready);
		TAILQ_REMOVE(&loop->ready, task, ready);
		run_task(loop, task);
	}
}

static void *
loop_main(void *argument)
{
	Loop *loop = this_loop = argument;

	loop->fiber = __tsan_get_current_fiber();
	while (!loop->stopping)
	{
		wait_for_events(loop);
		expire_timers(loop);
		take_arrivals(loop);
		run_ready(loop);
	}
	return NULL;
}

static void
on_alarm(int fd, uint32_t events)
{
	eventfd_t ignored;

	(void) events;
	eventfd_read(fd, &ignored);
}

/* An errno, or 0. */
static int
start_thread(pthread_t *thread, void *(*function)(void *), void *argument)
{
	pthread_attr_t attributes;
	int error;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, THREAD_STACK_SIZE);
	error = pthread_create(thread, &attributes, function, argument);
	pthread_attr_destroy(&attributes);
	return error;
}

static int
start_loop(Loop *loop)
{
	TAILQ_INIT(&loop->ready);
	RB_INIT(&loop->timers);
	STAILQ_INIT(&loop->arrivals);
	pthread_mutex_init(&loop->lock, NULL);
	loop->epoll = epoll_create1(EPOLL_CLOEXEC);
	loop->alarm = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (loop->epoll < 0 || loop->alarm < 0)
		return errno;
	if (!watch(loop, loop->alarm, EPOLLIN, on_alarm))
		return ENOMEM;
	return start_thread(&loop->thread, loop_main, loop);
}

bool
tasks_start(int threads)
{
	loops = calloc((size_t) threads, sizeof(Loop));
	for (loop_count = 0; loops != NULL && loop_count < threads; loop_count++)
	{
		int error = start_loop(&loops[loop_count]);

		if (error != 0)
		{
			log_line("could not start a thread: %s", strerror(error));
			return false;
		}
	}
	return loops != NULL;
}

void
tasks_stop(void)
{
	for (int i = 0; i < loop_count; i++)
	{
		loops[i].stopping = true;
		eventfd_write(loops[i].alarm, 1);
		pthread_join(loops[i].thread, NULL);
	}
}

/* ---- creating tasks ---- */

static Task *
create_on(Loop *loop, void (*function)(void *), void *argument)
{
	Task *task = calloc(1, sizeof(Task));

	if (task == NULL)
		return NULL;
	task->loop = loop;
	task->function = function;
	task->argument = argument;
	task->stack = get_stack();
	if (task->stack == NULL)
	{
		free(task);
		return NULL;
	}
	task->fiber = __tsan_create_fiber(0);
	task->waits = task->wakeable = true;
	task->deadline = INT64_MAX;
	loop->tasks++;
	return task;
}

Task *
task_create(void (*function)(void *), void *argument)
{
	Loop *least = &loops[0];

	for (int i = 1; i < loop_count; i++)
	{
		if (loops[i].tasks < least->tasks)
			least = &loops[i];
	}
	return create_on(least, function, argument);
}

Task *
task_create_here(void (*function)(void *), void *argument)
{
	return create_on(this_loop, function, argument);
}

/* A function to be called, and whoever waits until that has been done. */
typedef struct Call
{
	void (*function)(void *);
	void *argument;
	Task *task;
	sem_t done;
} Call;

static void *
call_in_thread(void *argument)
{
	Call *call = argument;

	call->function(call->argument);
	task_wake(call->task);
	return NULL;
}

void
task_call(void (*function)(void *), void *argument)
{
	Call call = {.function = function, .argument = argument, .task = task_self()};
	pthread_t thread;

	if (call.task != NULL && start_thread(&thread, call_in_thread, &call) == 0)
	{
		task_wait(-1, INT64_MAX);
		pthread_join(thread, NULL);
	}
	else
		function(argument); /* better late than not at all */
}

static void
call_in_task(void *argument)
{
	Call *call = argument;

	call->function(call->argument);
	sem_post(&call->done);
}

bool
task_run(void (*function)(void *), void *argument)
{
	Call call = {.function = function, .argument = argument};
	Task *task = task_create(call_in_task, &call);

	if (task == NULL)
		return false;
	sem_init(&call.done, 0, 0);
	task_wake(task);
	while (sem_wait(&call.done) != 0)
		;
	sem_destroy(&call.done);
	return true;
}
