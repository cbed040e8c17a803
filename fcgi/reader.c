/*
 * reader.c
 *	  Reads for the responder itself what takes longer than a verdict: logs and analytics.
 *
 * A few connections beside that of the authorizer, which no such query may hold up;
 * each is made when it is needed and kept.
 */
#include "reader.h"
#include "clock.h"
#include "config.h"
#include "database.h"
#include "gate.h"
#include "log.h"
#include "task.h"

#define CONNECTIONS 2
/* Requests that may wait for one. */
#define WAITING_MAX 64
/* ms that a statement may run, and that a request waits in all */
#define STATEMENT_TIMEOUT 10000
#define PATIENCE 15000

static Gate gate;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Those that are not in use; protected by lock. */
static PGconn *idle[CONNECTIONS];
static int idle_count;

void
reader_init(void)
{
	gate_init(&gate, CONNECTIONS, WAITING_MAX);
}

void
reader_finish(void)
{
	while (idle_count > 0)
		PQfinish(idle[--idle_count]);
}

static PGconn *
take_idle(void)
{
	PGconn *connection = NULL;

	pthread_mutex_lock(&lock);
	if (idle_count > 0)
		connection = idle[--idle_count];
	pthread_mutex_unlock(&lock);
	return connection;
}

static void
put_idle(PGconn *connection)
{
	pthread_mutex_lock(&lock);
	idle[idle_count++] = connection;
	pthread_mutex_unlock(&lock);
}

/* To be called in a thread, since libpq looks names up. */
static void
connect_reader(void *connection)
{
	char error[DATABASE_ERROR_SIZE];

	*(PGconn **) connection =
		database_connect(config.database, "regpilot-fcgi reader", STATEMENT_TIMEOUT,
						 clock_ms() + config.database_timeout, error);
	if (*(PGconn **) connection == NULL)
		log_line("cannot read logs: %s", error);
}

void
reader_run(const char *sql, int count, const char *const *values, QueryResult *result)
{
	int64_t deadline = clock_ms() + PATIENCE;
	PGconn *connection;

	*result = (QueryResult){.outcome = QUERY_LOST};
	if (!gate_enter(&gate, deadline))
		return;
	connection = take_idle();
	if (connection != NULL && !database_alive(connection))
	{
		PQfinish(connection);
		connection = NULL;
	}
	if (connection == NULL)
		task_call(connect_reader, &connection);
	if (connection != NULL)
		query_run(connection, sql, count, values, deadline, result);
	if (connection != NULL && result->outcome == QUERY_LOST)
		PQfinish(connection);
	else if (connection != NULL)
		put_idle(connection);
	gate_leave(&gate);
}
