/*
 * recorder.c
 *	  Reports the outcomes of requests to the database.
 *
 * Outcomes stay in the queue until there is a connection. A batch that has been
 * sent is not sent again, whatever becomes of it: the database may have counted
 * it, and an outcome counted twice is worse than one that is lost and logged.
 */
#include "recorder.h"
#include "buffer.h"
#include "clock.h"
#include "config.h"
#include "database.h"
#include "log.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Outcomes kept while the database is away: about 6 MB at most, and the models' names. */
#define QUEUE_SIZE 65536
/* Outcomes in one call; so many are sent without waiting for more */
#define BATCH_MAX 4096
/* ms that an outcome waits for others */
#define FLUSH_INTERVAL 200
/* ms that one call or one attempt to connect may take: no request waits for it */
#define CALL_TIMEOUT 5000
/* ms between attempts to connect */
#define RETRY_INTERVAL 500

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake; /* signalled when the thread has something to look at */
static pthread_t thread;

/* protected by lock: a ring */
static Outcome queue[QUEUE_SIZE];
static int first;
static int count;
static int64_t dropped; /* since the last message about it */
static bool stopping;

/* the thread's */
static PGconn *connection;
static char problem[DATABASE_ERROR_SIZE]; /* logged last; empty while all is well */

/* The parameters of record_many, in its order. */
enum
{
	KEY_IDS,
	ENVIRONMENTS,
	STATUSES,
	LATENCIES,
	MODELS,
	PROMPT_TOKENS,
	COMPLETION_TOKENS,
	PARAMETERS
};

void
recorder_add(const Outcome *outcome)
{
	pthread_mutex_lock(&lock);
	if (count == QUEUE_SIZE)
	{
		dropped++;
		free(outcome->model);
	}
	else
	{
		queue[(first + count) % QUEUE_SIZE] = *outcome;
		count++;
		if (count == 1 || count == BATCH_MAX)
			pthread_cond_signal(&wake);
	}
	pthread_mutex_unlock(&lock);
}

/* Logs a problem that was not the last one. */
static void
report(const char *error)
{
	if (strcmp(error, problem) != 0)
		log_line("cannot record outcomes: %s", error);
	snprintf(problem, sizeof(problem), "%s", error);
}

/* An element of a text-format array. */
static void
append_text(Buffer *array, const char *value)
{
	buffer_append_string(array, array->length > 0 ? "," : "{");
	if (value == NULL)
	{
		buffer_append_string(array, "NULL");
		return;
	}
	buffer_append_string(array, "\"");
	for (; *value != '\0'; value++)
	{
		if (*value == '"' || *value == '\\')
			buffer_append(array, "\\", 1);
		buffer_append(array, value, 1);
	}
	buffer_append_string(array, "\"");
}

static void
append_number(Buffer *array, int64_t value)
{
	buffer_printf(array, "%c%lld", array->length > 0 ? ',' : '{', (long long) value);
}

/* Moves outcomes from the queue into the parameters; gives their number. Holds the lock. */
static int
take_batch(Buffer parameter[PARAMETERS])
{
	int taken = 0;

	for (; taken < BATCH_MAX && count > 0; taken++)
	{
		Outcome *outcome = &queue[first];

		append_text(&parameter[KEY_IDS], outcome->key_id);
		append_text(&parameter[ENVIRONMENTS], outcome->environment);
		append_number(&parameter[STATUSES], outcome->status);
		append_number(&parameter[LATENCIES], outcome->latency);
		append_text(&parameter[MODELS], outcome->model);
		append_number(&parameter[PROMPT_TOKENS], outcome->prompt_tokens);
		append_number(&parameter[COMPLETION_TOKENS], outcome->completion_tokens);
		free(outcome->model);

		first = (first + 1) % QUEUE_SIZE;
		count--;
	}
	return taken;
}

/* Sends one call of record_many; false, with an error text, when it failed. */
static bool
record(Buffer parameter[PARAMETERS], char *error)
{
	static const char sql[] = "SELECT regpilot.record_many($1::pg_catalog.uuid[],"
							  " $2::pg_catalog.text[], $3::pg_catalog.int4[],"
							  " $4::pg_catalog.int4[], $5::pg_catalog.text[],"
							  " $6::pg_catalog.int8[], $7::pg_catalog.int8[])";
	const char *values[PARAMETERS];
	PGresult *result;

	for (int i = 0; i < PARAMETERS; i++)
	{
		buffer_append_string(&parameter[i], "}");
		if (parameter[i].failed)
		{
			snprintf(error, DATABASE_ERROR_SIZE, "out of memory");
			return false;
		}
		values[i] = parameter[i].data;
	}
	if (!PQsendQueryParams(connection, sql, PARAMETERS, NULL, values, NULL, NULL, 0))
	{
		snprintf(error, DATABASE_ERROR_SIZE, "%s", PQerrorMessage(connection));
		return false;
	}
	result = database_result(connection, clock_ms() + CALL_TIMEOUT, error, NULL);
	PQclear(result);
	return result != NULL;
}

/* Sends up to a batch of what is queued. Called and returns with the lock. */
static void
flush(void)
{
	Buffer parameter[PARAMETERS];
	char error[DATABASE_ERROR_SIZE];
	int taken;

	for (int i = 0; i < PARAMETERS; i++)
		buffer_init(&parameter[i], SIZE_MAX / 2);
	taken = take_batch(parameter);
	pthread_mutex_unlock(&lock);

	if (record(parameter, error))
		problem[0] = '\0';
	else
	{
		report(error);
		log_line("lost %d outcomes", taken);
		PQfinish(connection);
		connection = NULL;
	}
	for (int i = 0; i < PARAMETERS; i++)
		buffer_free(&parameter[i]);
	pthread_mutex_lock(&lock);
}

/* Called and returns with the lock. */
static bool
ensure_connection(void)
{
	pthread_mutex_unlock(&lock);
	if (connection != NULL && !database_alive(connection))
	{
		PQfinish(connection);
		connection = NULL;
	}
	if (connection == NULL)
	{
		char error[DATABASE_ERROR_SIZE];

		connection = database_connect(config.database, "regpilot-fcgi recorder", CALL_TIMEOUT,
									  clock_ms() + CALL_TIMEOUT, error);
		if (connection == NULL)
			report(error);
	}
	pthread_mutex_lock(&lock);
	return connection != NULL;
}

/* Waits up to so many ms, or until stopping, or until a whole batch is there. Holds the lock. */
static void
pause_for(int ms, bool batch_ends_it)
{
	struct timespec end = clock_timespec(clock_ms() + ms);

	while (!stopping && !(batch_ends_it && count >= BATCH_MAX) &&
		   pthread_cond_timedwait(&wake, &lock, &end) != ETIMEDOUT)
		;
}

static void *
recorder_main(void *argument)
{
	(void) argument;

	pthread_mutex_lock(&lock);
	for (;;)
	{
		while (count == 0 && !stopping)
			pthread_cond_wait(&wake, &lock);
		if (count == 0)
			break;

		pause_for(FLUSH_INTERVAL, true);
		if (ensure_connection())
			flush();
		else if (stopping)
			break;
		else
			pause_for(RETRY_INTERVAL, false);

		if (dropped > 0)
		{
			log_line("lost %lld outcomes: the queue was full", (long long) dropped);
			dropped = 0;
		}
	}
	if (count > 0)
		log_line("lost %d outcomes: stopped without a connection", count);
	for (; count > 0; count--, first = (first + 1) % QUEUE_SIZE)
		free(queue[first].model);
	pthread_mutex_unlock(&lock);
	PQfinish(connection);
	return NULL;
}

bool
recorder_start(void)
{
	pthread_condattr_t monotonic;

	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&wake, &monotonic);
	if (pthread_create(&thread, NULL, recorder_main, NULL) == 0)
		return true;
	log_line("could not start the recorder's thread");
	return false;
}

void
recorder_stop(void)
{
	pthread_mutex_lock(&lock);
	stopping = true;
	pthread_cond_signal(&wake);
	pthread_mutex_unlock(&lock);
	pthread_join(thread, NULL);
}
