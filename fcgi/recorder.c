/*
 * recorder.c
 *	  Reports the outcomes of requests to the database.
 *
 * Outcomes stay in the queue until they are recorded, once each, whatever becomes of
 * the connection. A batch is a transaction: its rows in the request log come with the
 * COMMIT, and so do its counts (see outcome.c of the extension). Until COMMIT is sent
 * a failure means that nothing has been recorded, and the batch is sent again. When no
 * answer to COMMIT has come, the database is asked later what became of the
 * transaction, by the number that it had. (On a standby it has none. What was in doubt
 * is then taken for recorded: a count too many is worse than one too few.)
 *
 * Lost, and logged, are outcomes that do not fit into the queue while the database is
 * away, those that are left some time after recorder_stop(), and one that the database
 * finds fault with. That takes others with it no further than to a second call: the
 * batch is halved until the bad one is alone.
 */
#include "recorder.h"
#include "array.h"
#include "clock.h"
#include "config.h"
#include "database.h"
#include "log.h"
#include "metrics.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Outcomes kept while the database is away: 6 MB, and their models' names. */
#ifndef QUEUE_SIZE
#define QUEUE_SIZE 65536
#endif
/* Outcomes in one call; so many are sent without waiting for more */
#define BATCH_MAX 4096
/* ms that an outcome waits for others */
#define FLUSH_INTERVAL 200
/* ms that the database gets for a statement, and for an attempt to connect: no request waits */
#define CALL_TIMEOUT 5000
/* ms more until we give the connection up: it is better to hear of the timeout */
#define ANSWER_TIMEOUT (CALL_TIMEOUT + 1000)
/* ms between attempts */
#define RETRY_INTERVAL 500
/* ms after recorder_stop() in which the database may come back */
#define STOP_PATIENCE 10000
/* ms between two messages about what is lost */
#define LOSS_INTERVAL 1000

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake; /* signalled when the thread has something to look at */
static pthread_t thread;

/*
 * Protected by lock. The queue is a ring of which only the thread removes outcomes: so
 * it may read those that are in it without the lock.
 */
static Outcome queue[QUEUE_SIZE];
static int first;
static int count;
static int64_t overflowed; /* outcomes that did not fit, since the last message about it */
static bool stopping;
static int64_t give_up_at; /* while stopping */
static struct
{
	bool connected;
	int64_t recorded; /* outcomes */
	int64_t lost;	  /* outcomes; each is logged as well */
	int64_t failures; /* calls, and attempts to connect */
} statistics;

/* What came of an attempt to record a batch. */
typedef enum Attempt
{
	ATTEMPT_RECORDED,
	ATTEMPT_FAILED,	 /* nothing was recorded, or it is not known yet; to be tried again */
	ATTEMPT_REFUSED, /* the database finds fault with an outcome */
	ATTEMPT_UNKNOWN, /* it will never be known */
} Attempt;

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
	FIRST_BYTES,
	PARAMETERS
};

static const struct
{
	uint32_t element;
	Oid array;
} parameter_type[PARAMETERS] = {
	[KEY_IDS] = {UUIDOID, UUIDARRAYOID},
	[ENVIRONMENTS] = {TEXTOID, TEXTARRAYOID},
	[STATUSES] = {INT4OID, INT4ARRAYOID},
	[LATENCIES] = {INT4OID, INT4ARRAYOID},
	[MODELS] = {TEXTOID, TEXTARRAYOID},
	[PROMPT_TOKENS] = {INT8OID, INT8ARRAYOID},
	[COMPLETION_TOKENS] = {INT8OID, INT8ARRAYOID},
	[FIRST_BYTES] = {INT4OID, INT4ARRAYOID},
};

static const char record_sql[] = "SELECT regpilot.record_many($1, $2, $3, $4, $5, $6, $7, $8)";

/* The thread's. */
static struct
{
	PGconn *connection;
	bool unicode; /* the database has characters for any name of a model */
	Buffer parameter[PARAMETERS];
	int batch_max; /* less than BATCH_MAX while an outcome is looked for that was refused */
	bool refused;  /* the outcome that was sent last, alone */

	/* a batch of which we do not know whether it is recorded: the first ones of the queue */
	int doubtful;		  /* outcomes; 0: there is none */
	uint64_t transaction; /* 0: has no number */

	char error[DATABASE_ERROR_SIZE];   /* of the last attempt */
	char problem[DATABASE_ERROR_SIZE]; /* logged last; empty while all is well */
	int64_t lost;					   /* since the last message about it */
	int64_t lost_logged_at;
} recorder;

void
recorder_add(const Outcome *outcome)
{
	pthread_mutex_lock(&lock);
	if (count == QUEUE_SIZE)
	{
		overflowed++;
		statistics.lost++;
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

void
recorder_metrics(Buffer *out)
{
	pthread_mutex_lock(&lock);
	metrics_single(out, "regpilot_outcomes_queued", "gauge",
				   "Outcomes of requests that wait to be recorded.", count);
	metrics_head(out, "regpilot_outcomes_total", "counter",
				 "Outcomes recorded in the database, and lost.");
	buffer_printf(out,
				  "regpilot_outcomes_total{result=\"recorded\"} %lld\n"
				  "regpilot_outcomes_total{result=\"lost\"} %lld\n",
				  (long long) statistics.recorded, (long long) statistics.lost);
	metrics_single(out, "regpilot_recorder_up", "gauge",
				   "Whether there is a connection to record outcomes over.", statistics.connected);
	metrics_single(out, "regpilot_recorder_failures_total", "counter",
				   "Calls to record outcomes, and connections for it, that failed.",
				   statistics.failures);
	pthread_mutex_unlock(&lock);
}

/* ---- the connection ---- */

static void
set_connected(bool connected)
{
	pthread_mutex_lock(&lock);
	statistics.connected = connected;
	pthread_mutex_unlock(&lock);
}

static void
disconnect(void)
{
	PQfinish(recorder.connection);
	recorder.connection = NULL;
	set_connected(false);
}

static bool
prepare(int64_t deadline)
{
	Oid types[PARAMETERS];
	PGresult *result;

	for (int i = 0; i < PARAMETERS; i++)
		types[i] = parameter_type[i].array;
	if (!PQsendPrepare(recorder.connection, "record", record_sql, PARAMETERS, types))
	{
		snprintf(recorder.error, sizeof(recorder.error), "%s", PQerrorMessage(recorder.connection));
		return false;
	}
	result = database_result(recorder.connection, deadline, recorder.error, NULL);
	PQclear(result);
	return result != NULL;
}

/* Sees to it that there is a connection that works, as far as we know. */
static bool
ensure_connection(int64_t deadline)
{
	const char *encoding;

	if (recorder.connection != NULL && database_alive(recorder.connection))
		return true;
	disconnect();

	recorder.connection = database_connect(config.database, "regpilot-fcgi recorder", CALL_TIMEOUT,
										   deadline, recorder.error);
	if (recorder.connection == NULL || !prepare(deadline))
		return false;
	encoding = PQparameterStatus(recorder.connection, "server_encoding");
	recorder.unicode =
		encoding != NULL && (strcmp(encoding, "UTF8") == 0 || strcmp(encoding, "SQL_ASCII") == 0);
	set_connected(true);
	return true;
}

/* ---- one batch ---- */

static int
hex_digit(char c)
{
	return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
}

/* Appends a uuid, which is well-formed: the database has written it. */
static void
append_uuid(Buffer *array, const char *text)
{
	unsigned char bytes[16] = {0};

	for (size_t i = 0; i < sizeof(bytes) && text[0] != '\0' && text[1] != '\0'; text += 2)
	{
		if (*text == '-')
			text++;
		bytes[i++] = (unsigned char) (hex_digit(text[0]) << 4 | hex_digit(text[1]));
	}
	array_append(array, bytes, sizeof(bytes));
}

/* Puts a question mark in the place of each character that is not of ASCII. */
static void
make_ascii(char *text)
{
	char *end = text;

	for (; *text != '\0'; text++)
	{
		if ((*text & 0x80) == 0)
			*end++ = *text;
		else if ((*text & 0x40) != 0) /* the first byte of a character (UTF-8) */
			*end++ = '?';
	}
	*end = '\0';
}

/* Makes parameters of the first outcomes of the queue; false when out of memory. */
static bool
make_parameters(int outcomes)
{
	Buffer *parameter = recorder.parameter;
	bool failed = false;

	for (int i = 0; i < PARAMETERS; i++)
		array_begin(&parameter[i], parameter_type[i].element);
	for (int i = 0; i < outcomes; i++)
	{
		const Outcome *outcome = &queue[(first + i) % QUEUE_SIZE];

		if (!recorder.unicode && outcome->model != NULL)
			make_ascii(outcome->model);
		append_uuid(&parameter[KEY_IDS], outcome->key_id);
		array_append_text(&parameter[ENVIRONMENTS], outcome->environment);
		array_append_int32(&parameter[STATUSES], outcome->status);
		array_append_int32(&parameter[LATENCIES], outcome->latency);
		array_append_text(&parameter[MODELS], outcome->model);
		array_append_int64(&parameter[PROMPT_TOKENS], outcome->prompt_tokens);
		array_append_int64(&parameter[COMPLETION_TOKENS], outcome->completion_tokens);
		array_append_int32(&parameter[FIRST_BYTES], outcome->first_byte);
	}
	for (int i = 0; i < PARAMETERS; i++)
	{
		array_end(&parameter[i], outcomes);
		failed |= parameter[i].failed;
	}
	return !failed;
}

/* Begins a transaction and notes its number. */
static bool
begin(int64_t deadline)
{
	PGresult *result = database_query(
		recorder.connection,
		"BEGIN ISOLATION LEVEL READ COMMITTED;"
		" SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_current_xact_id() END",
		deadline, recorder.error, NULL);

	if (result == NULL)
		return false;
	recorder.transaction = strtoull(PQgetvalue(result, 0, 0), NULL, 10); /* 0 for NULL */
	PQclear(result);
	return true;
}

/* Calls record_many with the parameters; sqlstate as of database_result(). */
static bool
call(int64_t deadline, char *sqlstate)
{
	static const int binary[PARAMETERS] = {1, 1, 1, 1, 1, 1, 1, 1};
	const char *values[PARAMETERS];
	int lengths[PARAMETERS];
	PGresult *result;

	for (int i = 0; i < PARAMETERS; i++)
	{
		values[i] = recorder.parameter[i].data;
		lengths[i] = (int) recorder.parameter[i].length;
	}
	sqlstate[0] = '\0';
	if (!PQsendQueryPrepared(recorder.connection, "record", PARAMETERS, values, lengths, binary, 1))
	{
		snprintf(recorder.error, sizeof(recorder.error), "%s", PQerrorMessage(recorder.connection));
		return false;
	}
	result = database_result(recorder.connection, deadline, recorder.error, sqlstate);
	PQclear(result);
	return result != NULL;
}

/*
 * What became of the batch that is in doubt. ATTEMPT_FAILED: that is not known yet, or
 * it was not recorded, and is in doubt no more.
 */
static Attempt
resolve(int64_t deadline)
{
	Attempt attempt = ATTEMPT_FAILED;
	char sqlstate[6];
	char sql[96];
	PGresult *result;

	snprintf(sql, sizeof(sql), "SELECT pg_catalog.pg_xact_status('%llu')",
			 (unsigned long long) recorder.transaction);
	result = database_query(recorder.connection, sql, deadline, recorder.error, sqlstate);
	if (result != NULL)
	{
		const char *status = PQgetvalue(result, 0, 0);

		if (strcmp(status, "committed") == 0)
			attempt = ATTEMPT_RECORDED;
		else if (strcmp(status, "aborted") == 0)
			recorder.doubtful = 0;
		else if (strcmp(status, "in progress") == 0)
			snprintf(recorder.error, sizeof(recorder.error), "a call has not ended yet");
		else
			attempt = ATTEMPT_UNKNOWN; /* NULL: it is too long ago */
	}
	else if (strcmp(sqlstate, "22023") == 0)
		recorder.doubtful = 0; /* yet to come: a crash of the server has undone it */
	PQclear(result);
	return attempt;
}

/*
 * Whether the database finds fault with what it was to record, not with itself: by the
 * class of the SQLSTATE. Data, integrity, WITH CHECK OPTION, limits; what triggers
 * raise; internal errors.
 */
static bool
is_refusal(const char *sqlstate)
{
	static const char *const classes[] = {"22", "23", "44", "54", "P0", "XX"};

	for (size_t i = 0; i < sizeof(classes) / sizeof(classes[0]); i++)
	{
		if (strncmp(sqlstate, classes[i], 2) == 0)
			return true;
	}
	return false;
}

/* Records the first outcomes of the queue, all or none of them. */
static Attempt
record(int outcomes, int64_t deadline)
{
	char sqlstate[6];
	bool sent_commit = false;
	PGresult *result = NULL;

	if (!ensure_connection(deadline))
		return ATTEMPT_FAILED;
	if (recorder.doubtful > 0)
	{
		Attempt attempt = resolve(deadline);

		if (recorder.doubtful > 0)
			return attempt;
	}

	if (!make_parameters(outcomes))
	{
		snprintf(recorder.error, sizeof(recorder.error), "out of memory");
		return ATTEMPT_FAILED;
	}
	if (!begin(deadline))
		return ATTEMPT_FAILED;
	if (call(deadline, sqlstate))
	{
		sent_commit = true;
		result = database_query(recorder.connection, "COMMIT", deadline, recorder.error, sqlstate);
		PQclear(result);
	}
	if (result != NULL)
		return ATTEMPT_RECORDED;

	if (is_refusal(sqlstate))
	{
		char ignored[DATABASE_ERROR_SIZE];

		result = database_query(recorder.connection, "ROLLBACK", deadline, ignored, NULL);
		PQclear(result);
		if (result == NULL)
			disconnect();
		return ATTEMPT_REFUSED;
	}
	if (sent_commit)
	{
		recorder.doubtful = outcomes;
		if (recorder.transaction == 0)
			return ATTEMPT_UNKNOWN;
	}
	return ATTEMPT_FAILED;
}

/* ---- the thread ---- */

/* Waits up to so many ms, or until we are to stop, or until a whole batch is there. Holds the lock. */
static void
pause_for(int ms, bool batch_ends_it)
{
	struct timespec end = clock_timespec(clock_ms() + ms);
	bool stopped = stopping;

	while (stopping == stopped && !(batch_ends_it && count >= BATCH_MAX) &&
		   pthread_cond_timedwait(&wake, &lock, &end) != ETIMEDOUT)
		;
}

/* Takes the first outcomes from the queue. Holds the lock. */
static void
remove_outcomes(int outcomes)
{
	for (int i = 0; i < outcomes; i++)
	{
		free(queue[first].model);
		first = (first + 1) % QUEUE_SIZE;
	}
	count -= outcomes;
	recorder.doubtful = 0;
}

/* The same of outcomes that are lost. Holds the lock. */
static void
lose_outcomes(int outcomes, const char *why)
{
	remove_outcomes(outcomes);
	statistics.lost += outcomes;
	log_line("lost %d outcomes: %s", outcomes, why);
}

/* Follows up on an attempt to record some outcomes; false when there is to be no other. Holds the lock. */
static bool
follow_up(Attempt attempt, int outcomes)
{
	bool refused = recorder.refused;
	bool failed = recorder.problem[0] != '\0';

	recorder.refused = false;
	switch (attempt)
	{
		case ATTEMPT_RECORDED:
			remove_outcomes(outcomes);
			statistics.recorded += outcomes;
			recorder.batch_max =
				recorder.batch_max < BATCH_MAX / 2 ? 2 * recorder.batch_max : BATCH_MAX;
			if (failed)
				log_info("recording outcomes again");
			recorder.problem[0] = '\0';
			break;

		case ATTEMPT_REFUSED:
			statistics.failures++;
			if (outcomes > 1)
			{
				recorder.batch_max = outcomes / 2;
				break;
			}
			lose_outcomes(outcomes, recorder.error);
			recorder.refused = true;
			if (refused && !stopping)
				pause_for(RETRY_INTERVAL, false); /* not one after the other in a rush */
			break;

		case ATTEMPT_UNKNOWN:
			statistics.failures++;
			lose_outcomes(outcomes, recorder.error);
			break;

		case ATTEMPT_FAILED:
			statistics.failures++;
			if (strcmp(recorder.error, recorder.problem) != 0)
				log_line("cannot record outcomes: %s", recorder.error);
			snprintf(recorder.problem, sizeof(recorder.problem), "%s", recorder.error);
			if (stopping && clock_ms() >= give_up_at)
				return false;
			if (failed)
				pause_for(RETRY_INTERVAL, false); /* not after a first failure */
			break;
	}
	return true;
}

static void *
recorder_main(void *argument)
{
	bool going_on = true;

	(void) argument;
	recorder.batch_max = BATCH_MAX;
	for (int i = 0; i < PARAMETERS; i++)
		buffer_init(&recorder.parameter[i], INT32_MAX);

	pthread_mutex_lock(&lock);
	while (going_on)
	{
		int64_t deadline;
		Attempt attempt;
		int outcomes;

		while (count == 0 && !stopping)
			pthread_cond_wait(&wake, &lock);
		if (count == 0)
			break;
		if (!stopping && recorder.batch_max == BATCH_MAX)
			pause_for(FLUSH_INTERVAL, true);

		outcomes = recorder.doubtful;
		if (outcomes == 0)
			outcomes = count < recorder.batch_max ? count : recorder.batch_max;
		deadline = clock_ms() + ANSWER_TIMEOUT;
		if (stopping && deadline > give_up_at)
			deadline = give_up_at;

		pthread_mutex_unlock(&lock);
		attempt = record(outcomes, deadline);
		if (attempt == ATTEMPT_FAILED || attempt == ATTEMPT_UNKNOWN)
			disconnect();
		pthread_mutex_lock(&lock);
		going_on = follow_up(attempt, outcomes);

		if (overflowed > 0)
			log_line("lost %lld outcomes: the queue was full", (long long) overflowed);
		overflowed = 0;
	}
	if (count > 0)
		lose_outcomes(count, "stopped before they could be recorded");
	pthread_mutex_unlock(&lock);

	PQfinish(recorder.connection);
	for (int i = 0; i < PARAMETERS; i++)
		buffer_free(&recorder.parameter[i]);
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
	give_up_at = clock_ms() + STOP_PATIENCE;
	pthread_cond_signal(&wake);
	pthread_mutex_unlock(&lock);
	pthread_join(thread, NULL);
}
