/*
 * authorizer.c
 *	  Asks the database whether a key may pass.
 *
 * Group authorisation: a thread puts its question in the queue. If nobody
 * leads, it becomes the leader: it takes what is queued, asks the database
 * about all of it in one call, hands out the answers, and passes leadership on.
 * Under load the questions that come in during one call form the next.
 *
 * Leadership goes to the newest question in the queue, whose time runs out
 * last. So a call is given up, and the connection with it, only when the time
 * of all that it was made for is up; and each thread leaves when its own is,
 * even while a leader still asks on its behalf.
 *
 * Locking: "lock" protects the queue, led, and the fields of a Question that
 * say so. What belongs to the leader (call and database) is used by one thread
 * at a time without the lock; the lock is taken in between, when leadership
 * changes. A thread that waits is woken by its semaphore, once, after the lock
 * has been released: so those woken do not queue up for the lock.
 */
#include "authorizer.h"
#include "buffer.h"
#include "clock.h"
#include "config.h"
#include "database.h"
#include "log.h"
#include "routes.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

/* Questions in one call. */
#define CALL_MAX 64
/* ms to wait before connecting again: none after the first failure, then doubling */
#define BACKOFF_MIN 50
#define BACKOFF_MAX 500
/* ms between two looks at the routes where we cannot LISTEN, on a standby */
#define ROUTES_INTERVAL 5000

/* OIDs of built-in types, from PostgreSQL's catalog/pg_type.dat */
#define INT4ARRAYOID 1007
#define TEXTARRAYOID 1009

typedef enum QuestionState
{
	QUESTION_QUEUED,   /* in the queue */
	QUESTION_CHOSEN,   /* in the queue, and its thread is to lead; wake is posted */
	QUESTION_CALLED,   /* in call.question[slot] */
	QUESTION_ANSWERED, /* answer is filled in; wake is posted */
} QuestionState;

/* Lives on the stack of the thread that asks. */
typedef struct Question
{
	const char *key;
	size_t key_length;
	const char *permission;
	const char *environment;
	int64_t deadline;
	sem_t wake;

	/* written under lock; atomic, since its thread reads it without, once woken */
	_Atomic QuestionState state;

	/* protected by lock */
	int slot;
	Authorization *answer;
	TAILQ_ENTRY(Question) link;
} Question;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* protected by lock */
static TAILQ_HEAD(QuestionQueue, Question) queue = TAILQ_HEAD_INITIALIZER(queue);
static bool led;

/* the leader's */
static struct
{
	Question *question[CALL_MAX]; /* protected by lock; NULL: has left */
	int count;
	Authorization answer[CALL_MAX];

	/* the parameters of authorize_many */
	Buffer ordinals;
	Buffer secrets;
	Buffer permissions;
	Buffer environments;
} call;

/* the leader's */
static struct
{
	PGconn *connection; /* NULL: none */
	Oid secret_type;	/* regpilot.secret */
	bool listening;		/* the server tells us of changes of the routes */
	int64_t routes_read;
	int failures;					   /* since the last call that worked */
	int64_t retry_at;				   /* no attempt to connect before this */
	char problem[DATABASE_ERROR_SIZE]; /* the one logged last */
} database;

static const char authorize_sql[] =
	"SELECT ordinal, verdict, key_id, project_id, plan, requests_per_minute, remaining,"
	" retry_after, pg_catalog.ceil(extract(epoch FROM reset_at))::pg_catalog.int8, project, name,"
	" hint, environment, counted_as, pg_catalog.array_to_json(permissions)"
	" FROM regpilot.authorize_many($1, $2, $3, $4)";

/* columns of authorize_sql */
enum
{
	COLUMN_ORDINAL,
	COLUMN_VERDICT,
	COLUMN_KEY_ID,
	COLUMN_PROJECT_ID,
	COLUMN_PLAN,
	COLUMN_REQUESTS_PER_MINUTE,
	COLUMN_REMAINING,
	COLUMN_RETRY_AFTER,
	COLUMN_RESET,
	COLUMN_PROJECT,
	COLUMN_NAME,
	COLUMN_HINT,
	COLUMN_ENVIRONMENT,
	COLUMN_COUNTED_AS,
	COLUMN_PERMISSIONS
};

static const char routes_sql[] =
	"SELECT r.quality, r.alias, r.upstream, u.base_url, u.secret_name, r.model"
	" FROM regpilot.route r JOIN regpilot.upstream u ON u.name OPERATOR(pg_catalog.=) r.upstream"
	" ORDER BY r.priority, r.id";

bool
authorizer_init(void)
{
	buffer_init(&call.ordinals, SIZE_MAX / 2);
	buffer_init(&call.secrets, SIZE_MAX / 2);
	buffer_init(&call.permissions, SIZE_MAX / 2);
	buffer_init(&call.environments, SIZE_MAX / 2);
	return database_check_conninfo(config.database);
}

void
authorizer_finish(void)
{
	PQfinish(database.connection);
	database.connection = NULL;
	buffer_free(&call.ordinals);
	buffer_free(&call.secrets);
	buffer_free(&call.permissions);
	buffer_free(&call.environments);
}

/* ---- the connection; all this is the leader's ---- */

/* Gives the connection up and says so, once for each new problem. */
static void
fail(const char *problem)
{
	PQfinish(database.connection);
	database.connection = NULL;

	if (database.failures == 0)
		database.retry_at = 0;
	else
	{
		int backoff = BACKOFF_MIN;

		for (int i = 1; i < database.failures && backoff < BACKOFF_MAX; i++)
			backoff *= 2;
		database.retry_at = clock_ms() + (backoff < BACKOFF_MAX ? backoff : BACKOFF_MAX);
	}
	if (database.failures == 0 || strcmp(problem, database.problem) != 0)
		log_line("cannot authorize: %s", problem);
	snprintf(database.problem, sizeof(database.problem), "%s", problem);
	database.failures++;
}

static char *
copy_value(const PGresult *result, int row, int column)
{
	return PQgetisnull(result, row, column) ? NULL : strdup(PQgetvalue(result, row, column));
}

static bool
read_routes(int64_t deadline, char *error)
{
	PGresult *result = database_query(database.connection, routes_sql, deadline, error, NULL);
	Routes *routes;

	if (result == NULL)
		return false;
	routes = routes_create((size_t) PQntuples(result));
	if (routes == NULL)
	{
		PQclear(result);
		snprintf(error, DATABASE_ERROR_SIZE, "out of memory");
		return false;
	}
	for (int row = 0; row < PQntuples(result); row++)
	{
		Route *route = &routes->route[row];

		route->quality = copy_value(result, row, 0);
		route->alias = copy_value(result, row, 1);
		route->upstream = copy_value(result, row, 2);
		route->base_url = copy_value(result, row, 3);
		route->secret_name = copy_value(result, row, 4);
		route->model = copy_value(result, row, 5);
	}
	PQclear(result);
	routes_publish(routes);
	database.routes_read = clock_ms();
	return true;
}

/*
 * LISTEN comes before the routes are read, and in a transaction of its own, so
 * that no change falls in between.
 */
static bool
listen_for_routes(int64_t deadline, char *error)
{
	char sqlstate[6];
	PGresult *result =
		database_query(database.connection, "LISTEN regpilot_routes", deadline, error, sqlstate);

	database.listening = result != NULL;
	PQclear(result);

	/* read_only_sql_transaction: a standby, which has no LISTEN */
	return database.listening || strcmp(sqlstate, "25006") == 0;
}

/* Looks up the parameter type and prepares the statement. */
static bool
prepare(int64_t deadline, char *error)
{
	Oid types[4] = {INT4ARRAYOID, InvalidOid, TEXTARRAYOID, TEXTARRAYOID};
	PGresult *result =
		database_query(database.connection,
					   "SELECT pg_catalog.to_regtype('regpilot.secret')::pg_catalog.oid,"
					   " pg_catalog.to_regtype('regpilot.secret[]')::pg_catalog.oid",
					   deadline, error, NULL);

	if (result == NULL)
		return false;
	database.secret_type = (Oid) strtoul(PQgetvalue(result, 0, 0), NULL, 10);
	types[1] = (Oid) strtoul(PQgetvalue(result, 0, 1), NULL, 10);
	PQclear(result);
	if (database.secret_type == InvalidOid || types[1] == InvalidOid)
	{
		snprintf(error, DATABASE_ERROR_SIZE, "extension \"regpilot\" is not installed");
		return false;
	}

	if (!PQsendPrepare(database.connection, "authorize", authorize_sql, 4, types))
	{
		snprintf(error, DATABASE_ERROR_SIZE, "%s", PQerrorMessage(database.connection));
		return false;
	}
	result = database_result(database.connection, deadline, error, NULL);
	PQclear(result);
	return result != NULL;
}

/* Forgets notifications; true when there were any. */
static bool
routes_changed(void)
{
	PGnotify *notification;
	bool changed = false;

	while ((notification = PQnotifies(database.connection)) != NULL)
	{
		PQfreemem(notification);
		changed = true;
	}
	return changed || (!database.listening && clock_ms() - database.routes_read >= ROUTES_INTERVAL);
}

/* Sees to it that there is a connection that works, as far as we know. */
static bool
ensure_connection(int64_t deadline)
{
	char error[DATABASE_ERROR_SIZE];

	/* A connection that died while idle, say by a restart, has failed nobody yet. */
	if (database.connection != NULL && !database_alive(database.connection))
	{
		PQfinish(database.connection);
		database.connection = NULL;
	}
	if (database.connection != NULL)
	{
		if (!routes_changed() || read_routes(deadline, error))
			return true;
		fail(error);
		return false;
	}

	if (clock_ms() < database.retry_at)
		return false;
	database.connection = database_connect(config.database, "regpilot-fcgi authorizer",
										   config.database_timeout, deadline, error);
	if (database.connection != NULL && listen_for_routes(deadline, error) &&
		prepare(deadline, error) && read_routes(deadline, error))
		return true;
	fail(error);
	return false;
}

/* ---- one call; all this is the leader's ---- */

/* PostgreSQL's binary formats have integers in network byte order. */
static void
append_int32(Buffer *buffer, size_t value)
{
	uint32_t network = htonl((uint32_t) value);

	buffer_append(buffer, &network, sizeof(network));
}

/* An element of a text-format array; value needs no quoting. */
static void
append_text(Buffer *array, const char *value)
{
	buffer_append_string(array, array->length > 0 ? "," : "{");
	buffer_append_string(array, value != NULL ? value : "NULL");
}

static void
reset(Buffer *buffer)
{
	buffer->length = 0;
	buffer->failed = false;
}

/*
 * Takes questions from the queue into the call. Their keys are copied here,
 * under the lock, since a thread that leaves takes its key with it.
 */
static void
take_questions(void)
{
	Question *question;

	reset(&call.ordinals);
	reset(&call.secrets);
	reset(&call.permissions);
	reset(&call.environments);
	call.count = 0;

	pthread_mutex_lock(&lock);
	while (call.count < CALL_MAX && (question = TAILQ_FIRST(&queue)) != NULL)
	{
		TAILQ_REMOVE(&queue, question, link);
		question->state = QUESTION_CALLED;
		question->slot = call.count;
		call.question[call.count] = question;

		buffer_printf(&call.ordinals, "%c%d", call.count == 0 ? '{' : ',', call.count);
		append_text(&call.permissions, question->permission);
		append_text(&call.environments, question->environment);
		append_int32(&call.secrets, question->key_length);
		buffer_append(&call.secrets, question->key, question->key_length);
		call.count++;
	}
	pthread_mutex_unlock(&lock);

	buffer_append_string(&call.ordinals, "}");
	buffer_append_string(&call.permissions, "}");
	buffer_append_string(&call.environments, "}");
}

/*
 * Sends the call. The keys go in binary format: as text, one could end up in
 * the server's log. An array in binary format has a head (see array_recv() in
 * PostgreSQL) and then each element with its length before it.
 */
static bool
send_call(void)
{
	Buffer array;
	const char *values[4] = {call.ordinals.data, NULL, call.permissions.data,
							 call.environments.data};
	int lengths[4] = {0, 0, 0, 0};
	const int formats[4] = {0, 1, 0, 0};
	bool sent = false;

	buffer_init(&array, SIZE_MAX / 2);
	append_int32(&array, 1); /* dimensions */
	append_int32(&array, 0); /* no NULLs */
	append_int32(&array, database.secret_type);
	append_int32(&array, (size_t) call.count);
	append_int32(&array, 1); /* lower bound */
	buffer_append(&array, call.secrets.data, call.secrets.length);

	if (!array.failed && !call.secrets.failed && !call.ordinals.failed &&
		!call.permissions.failed && !call.environments.failed && array.length <= INT32_MAX)
	{
		values[1] = array.data;
		lengths[1] = (int) array.length;
		sent = PQsendQueryPrepared(database.connection, "authorize", 4, values, lengths, formats,
								   0) == 1;
	}
	if (array.data != NULL)
		explicit_bzero(array.data, array.size);
	buffer_free(&array);
	return sent;
}

static Verdict
read_verdict(const char *name)
{
	static const char *const names[] = {
		[VERDICT_OK] = "ok",
		[VERDICT_INVALID] = "invalid",
		[VERDICT_INACTIVE] = "inactive",
		[VERDICT_EXPIRED] = "expired",
		[VERDICT_REVOKED] = "revoked",
		[VERDICT_FORBIDDEN] = "forbidden",
		[VERDICT_RATE_LIMITED] = "rate_limited",
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
	{
		if (strcmp(name, names[i]) == 0)
			return (Verdict) i;
	}
	return VERDICT_UNAVAILABLE;
}

static void
read_text(const PGresult *result, int row, int column, char *text, size_t size)
{
	size_t length = (size_t) PQgetlength(result, row, column); /* 0 for NULL */

	if (length >= size)
		length = size - 1;
	memcpy(text, PQgetvalue(result, row, column), length);
	text[length] = '\0';
}

static int64_t
read_integer(const PGresult *result, int row, int column)
{
	return strtoll(PQgetvalue(result, row, column), NULL, 10); /* 0 for NULL */
}

static void
read_answer(const PGresult *result, int row, Authorization *answer)
{
	answer->has_limit = !PQgetisnull(result, row, COLUMN_REQUESTS_PER_MINUTE);
	answer->has_remaining = !PQgetisnull(result, row, COLUMN_REMAINING);
	answer->has_reset = !PQgetisnull(result, row, COLUMN_RESET);
	answer->requests_per_minute = (int) read_integer(result, row, COLUMN_REQUESTS_PER_MINUTE);
	answer->remaining = (int) read_integer(result, row, COLUMN_REMAINING);
	answer->retry_after = (int) read_integer(result, row, COLUMN_RETRY_AFTER);
	answer->reset = read_integer(result, row, COLUMN_RESET);

#define READ_TEXT(column, field)                                                                   \
	read_text(result, row, column, answer->field, sizeof(answer->field))
	READ_TEXT(COLUMN_KEY_ID, key_id);
	READ_TEXT(COLUMN_PROJECT_ID, project_id);
	READ_TEXT(COLUMN_PLAN, plan);
	READ_TEXT(COLUMN_PROJECT, project);
	READ_TEXT(COLUMN_NAME, name);
	READ_TEXT(COLUMN_HINT, hint);
	READ_TEXT(COLUMN_ENVIRONMENT, environment);
	READ_TEXT(COLUMN_COUNTED_AS, counted_as);
	READ_TEXT(COLUMN_PERMISSIONS, permissions);
#undef READ_TEXT

	answer->verdict = read_verdict(PQgetvalue(result, row, COLUMN_VERDICT));
}

/* Asks the database about the questions taken; leaves alone the answers that it does not give. */
static void
make_call(int64_t deadline)
{
	char error[DATABASE_ERROR_SIZE];
	PGresult *result = NULL;

	/* A call that failed after it was sent is not repeated: it may have counted. */
	if (send_call())
		result = database_result(database.connection, deadline, error, NULL);
	else
		snprintf(error, sizeof(error), "%s", PQerrorMessage(database.connection));
	if (result == NULL)
	{
		fail(error);
		return;
	}

	for (int row = 0; row < PQntuples(result); row++)
	{
		int64_t ordinal = read_integer(result, row, COLUMN_ORDINAL);

		if (ordinal >= 0 && ordinal < call.count)
			read_answer(result, row, &call.answer[ordinal]);
	}
	PQclear(result);

	if (database.failures > 0)
		log_line("authorizing again");
	database.failures = 0;
}

/*
 * Leads once: asks for all who wait, hands out the answers and passes leadership
 * on. The state of self is CHOSEN; true when it is ANSWERED afterwards.
 */
static bool
lead(Question *self)
{
	Question *woken[CALL_MAX + 1];
	Question *next;
	int count = 0;
	bool answered;

	call.count = 0;
	if (clock_remaining(self->deadline) > 0)
	{
		bool connected = ensure_connection(self->deadline);

		for (int i = 0; i < CALL_MAX; i++)
			call.answer[i].verdict = VERDICT_UNAVAILABLE;
		take_questions(); /* only now: some may have come while we connected */
		if (connected)
			make_call(self->deadline);
		explicit_bzero(call.secrets.data, call.secrets.size);
	}

	pthread_mutex_lock(&lock);
	for (int i = 0; i < call.count; i++)
	{
		Question *question = call.question[i];

		if (question == NULL)
			continue;
		*question->answer = call.answer[i];
		question->state = QUESTION_ANSWERED;
		if (question != self)
			woken[count++] = question;
	}

	/* Not among those called: its time was up, or there were too many. */
	if (self->state == QUESTION_CHOSEN)
	{
		self->state = QUESTION_QUEUED;
		if (clock_remaining(self->deadline) == 0)
		{
			TAILQ_REMOVE(&queue, self, link);
			self->state = QUESTION_ANSWERED; /* unavailable, as it began */
		}
	}
	answered = self->state == QUESTION_ANSWERED;

	next = TAILQ_LAST(&queue, QuestionQueue);
	led = next != NULL;
	if (next != NULL)
	{
		next->state = QUESTION_CHOSEN;
		sem_post(&next->wake);
	}
	pthread_mutex_unlock(&lock);

	/* call belongs to the next leader by now */
	for (int i = 0; i < count; i++)
		sem_post(&woken[i]->wake);
	return answered;
}

/* Waits until the question is answered or chosen; false when its time was up before that. */
static bool
wait_for_turn(Question *self)
{
	struct timespec deadline = clock_timespec(self->deadline);
	bool leaves = true;

	while (sem_clockwait(&self->wake, CLOCK_MONOTONIC, &deadline) != 0)
	{
		if (errno != ETIMEDOUT)
			continue;

		pthread_mutex_lock(&lock);
		switch (self->state)
		{
			case QUESTION_QUEUED:
				TAILQ_REMOVE(&queue, self, link);
				break;
			case QUESTION_CALLED:
				call.question[self->slot] = NULL;
				break;
			case QUESTION_CHOSEN:
			case QUESTION_ANSWERED:
				leaves = false;
				break;
		}
		pthread_mutex_unlock(&lock);
		if (leaves)
			return false;

		/* Woken in this very moment: whoever does it still uses the semaphore. */
		while (sem_wait(&self->wake) != 0)
			;
		return true;
	}
	return true;
}

void
authorizer_ask(const char *key, size_t key_length, const char *permission, const char *environment,
			   Authorization *answer)
{
	Question self = {
		.key = key,
		.key_length = key_length,
		.permission = permission,
		.environment = environment,
		.deadline = clock_ms() + config.database_timeout,
		.state = QUESTION_QUEUED,
		.answer = answer,
	};
	bool waiting = true;

	answer->verdict = VERDICT_UNAVAILABLE;
	sem_init(&self.wake, 0, 0);

	pthread_mutex_lock(&lock);
	TAILQ_INSERT_TAIL(&queue, &self, link);
	if (!led)
	{
		led = true;
		self.state = QUESTION_CHOSEN;
		waiting = false;
	}
	pthread_mutex_unlock(&lock);

	for (;;)
	{
		if (waiting && !wait_for_turn(&self))
			break;
		if (self.state == QUESTION_ANSWERED || lead(&self))
			break;
		waiting = true;
	}
	sem_destroy(&self.wake);
}
