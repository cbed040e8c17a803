/*
 * authorizer.c
 *	  Asks the database whether a key may pass.
 *
 * Group authorisation: a task puts its question in the queue. If nobody
 * leads, it becomes the leader: it takes what is queued, asks the database
 * about all of it in one call, hands out the answers, and passes leadership on.
 * Under load the questions that come in during one call form the next.
 *
 * Leadership goes to the newest question in the queue, whose time runs out
 * last. So a call is given up, and the connection with it, only when the time
 * of all that it was made for is up; and each task leaves when its own is,
 * even while a leader still asks on its behalf.
 *
 * Locking: "lock" protects the queue, led, and the fields of a Question that
 * say so. What belongs to the leader (call and database) is used by one task
 * at a time without the lock; the lock is taken in between, when leadership
 * changes. A task that waits is woken once, after the lock has been released.
 */
#include "authorizer.h"
#include "array.h"
#include "buffer.h"
#include "clock.h"
#include "config.h"
#include "database.h"
#include "log.h"
#include "metrics.h"
#include "routes.h"
#include "task.h"

#include <pthread.h>
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

typedef enum QuestionState
{
	QUESTION_QUEUED,   /* in the queue */
	QUESTION_CHOSEN,   /* in the queue, and its task is to lead; that is woken */
	QUESTION_CALLED,   /* in call.question[slot] */
	QUESTION_ANSWERED, /* answer is filled in; its task is woken */
} QuestionState;

/* Lives on the stack of the task that asks. */
typedef struct Question
{
	const char *key;
	size_t key_length;
	const char *permission;
	const char *environment;
	int64_t deadline;
	Task *task;

	/* written under lock; atomic, since its task reads it without, once woken */
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

/* the parameters of authorize_many */
enum
{
	PARAMETER_ORDINALS,
	PARAMETER_SECRETS,
	PARAMETER_PERMISSIONS,
	PARAMETER_ENVIRONMENTS,
	PARAMETERS
};

/* the leader's */
static struct
{
	Question *question[CALL_MAX]; /* protected by lock; NULL: has left */
	int count;
	Authorization answer[CALL_MAX];

	Buffer parameter[PARAMETERS];
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

/*
 * Without any expression: what a column is made into costs the server more than
 * the verdict does.
 */
static const char authorize_sql[] =
	"SELECT ordinal, verdict, key_id, project_id, plan, requests_per_minute, remaining,"
	" retry_after, reset_at, project, name, hint, environment, counted_as, permissions"
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
	"SELECT r.quality, r.alias, r.upstream, u.base_url, u.secret_name, r.model, r.priority,"
	" u.connect_timeout_ms, u.timeout_ms"
	" FROM regpilot.route r JOIN regpilot.upstream u ON u.name OPERATOR(pg_catalog.=) r.upstream"
	" ORDER BY r.priority, r.id";

static const char *const verdict_names[] = {
	[VERDICT_OK] = "ok",
	[VERDICT_INVALID] = "invalid",
	[VERDICT_INACTIVE] = "inactive",
	[VERDICT_EXPIRED] = "expired",
	[VERDICT_REVOKED] = "revoked",
	[VERDICT_FORBIDDEN] = "forbidden",
	[VERDICT_RATE_LIMITED] = "rate_limited",
	[VERDICT_UNAVAILABLE] = "unavailable",
};

#define VERDICTS (sizeof(verdict_names) / sizeof(verdict_names[0]))

/* for /metrics */
static const int64_t batch_bounds[] = {1, 2, 4, 8, 16, 32, 64, 0};
static Histogram batches = {.bounds = batch_bounds, .unit = 1};
static Histogram calls = LATENCY_HISTOGRAM;
static Histogram waits = LATENCY_HISTOGRAM;
static _Atomic int64_t verdicts[VERDICTS];
static _Atomic int64_t failures;
static _Atomic bool database_up;

const char *
verdict_name(Verdict verdict)
{
	return verdict_names[verdict];
}

bool
authorizer_init(void)
{
	for (int i = 0; i < PARAMETERS; i++)
		buffer_init(&call.parameter[i], INT32_MAX);
	return database_check_conninfo(config.database);
}

void
authorizer_finish(void)
{
	PQfinish(database.connection);
	database.connection = NULL;
	for (int i = 0; i < PARAMETERS; i++)
		buffer_free(&call.parameter[i]);
}

/* ---- the connection; all this is the leader's ---- */

/* Gives the connection up and says so, once for each new problem. */
static void
fail(const char *problem)
{
	PQfinish(database.connection);
	database.connection = NULL;
	database_up = false;
	failures++;

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
		route->priority = atoi(PQgetvalue(result, row, 6));
		route->connect_timeout = atoi(PQgetvalue(result, row, 7)); /* NULL gives 0 */
		route->timeout = atoi(PQgetvalue(result, row, 8));
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

/* An attempt to connect. */
typedef struct Attempt
{
	int64_t deadline;
	char *error;
	PGconn *connection;
} Attempt;

static void
connect_database(void *argument)
{
	Attempt *attempt = argument;

	attempt->connection =
		database_connect(config.database, "regpilot-fcgi authorizer", config.database_timeout,
						 attempt->deadline, attempt->error);
}

/* Sees to it that there is a connection that works, as far as we know. */
static bool
ensure_connection(int64_t deadline)
{
	char error[DATABASE_ERROR_SIZE];
	Attempt attempt = {.deadline = deadline, .error = error};

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
	task_call(connect_database, &attempt); /* libpq looks names up, which may take long */
	database.connection = attempt.connection;
	if (database.connection != NULL && listen_for_routes(deadline, error) &&
		prepare(deadline, error) && read_routes(deadline, error))
		return true;
	fail(error);
	return false;
}

/* ---- one call; all this is the leader's ---- */

/*
 * Parameters and results travel in PostgreSQL's binary formats, those of the
 * types' receive and send functions: as text, a key could end up in the server's
 * log. Integers are in network byte order.
 */

/*
 * Takes questions from the queue into the call. Their keys are copied here,
 * under the lock, since a task that leaves takes its key with it.
 */
static void
take_questions(void)
{
	Question *question;

	array_begin(&call.parameter[PARAMETER_ORDINALS], INT4OID);
	array_begin(&call.parameter[PARAMETER_SECRETS], database.secret_type);
	array_begin(&call.parameter[PARAMETER_PERMISSIONS], TEXTOID);
	array_begin(&call.parameter[PARAMETER_ENVIRONMENTS], TEXTOID);
	call.count = 0;

	pthread_mutex_lock(&lock);
	while (call.count < CALL_MAX && (question = TAILQ_FIRST(&queue)) != NULL)
	{
		TAILQ_REMOVE(&queue, question, link);
		question->state = QUESTION_CALLED;
		question->slot = call.count;
		call.question[call.count] = question;

		array_append_int32(&call.parameter[PARAMETER_ORDINALS], call.count);
		array_append(&call.parameter[PARAMETER_SECRETS], question->key, question->key_length);
		array_append_text(&call.parameter[PARAMETER_PERMISSIONS], question->permission);
		array_append_text(&call.parameter[PARAMETER_ENVIRONMENTS], question->environment);
		call.count++;
	}
	pthread_mutex_unlock(&lock);

	for (int i = 0; i < PARAMETERS; i++)
		array_end(&call.parameter[i], call.count);
}

static bool
send_call(void)
{
	static const int binary[PARAMETERS] = {1, 1, 1, 1};
	const char *values[PARAMETERS];
	int lengths[PARAMETERS];

	for (int i = 0; i < PARAMETERS; i++)
	{
		if (call.parameter[i].failed)
			return false;
		values[i] = call.parameter[i].data;
		lengths[i] = (int) call.parameter[i].length;
	}
	return PQsendQueryPrepared(database.connection, "authorize", PARAMETERS, values, lengths,
							   binary, 1) == 1;
}

/* A value of a result: its bytes, none where it is NULL. */
typedef struct Value
{
	const char *bytes;
	size_t length;
} Value;

static Value
get_value(const PGresult *result, int row, int column)
{
	Value value = {
		.bytes = PQgetvalue(result, row, column),
		.length = (size_t) PQgetlength(result, row, column),
	};

	return value;
}

/* Takes a big-endian integer of so many bytes from the front of the value; 0 if it has less. */
static int64_t
take_integer(Value *value, size_t size)
{
	uint64_t integer = 0;

	if (value->length < size)
		return 0;
	for (size_t i = 0; i < size; i++)
		integer = integer << 8 | (unsigned char) value->bytes[i];
	value->bytes += size;
	value->length -= size;
	return size == sizeof(int32_t) ? (int32_t) integer : (int64_t) integer;
}

static int
read_int32(const PGresult *result, int row, int column)
{
	Value value = get_value(result, row, column);

	return (int) take_integer(&value, sizeof(int32_t));
}

static void
read_text(const PGresult *result, int row, int column, char *text, size_t size)
{
	Value value = get_value(result, row, column);

	if (value.length >= size)
		value.length = size - 1;
	memcpy(text, value.bytes, value.length);
	text[value.length] = '\0';
}

static void
read_uuid(const PGresult *result, int row, int column, char text[37])
{
	static const char digits[] = "0123456789abcdef";
	Value value = get_value(result, row, column);
	char *end = text;

	for (size_t i = 0; i < value.length && i < 16; i++)
	{
		unsigned char byte = (unsigned char) value.bytes[i];

		if (i == 4 || i == 6 || i == 8 || i == 10)
			*end++ = '-';
		*end++ = digits[byte >> 4];
		*end++ = digits[byte & 15];
	}
	*end = '\0';
}

/* A timestamptz, in microseconds since 2000, as Unix seconds, rounded up. */
static int64_t
read_time(const PGresult *result, int row, int column)
{
	static const int64_t epoch = 946684800; /* 2000-01-01 */
	Value value = get_value(result, row, column);
	int64_t microseconds = take_integer(&value, sizeof(int64_t));

	return epoch + microseconds / 1000000 + (microseconds % 1000000 > 0);
}

/* A text[] without NULLs, as a JSON array. */
static void
read_texts(const PGresult *result, int row, int column, char *json, size_t size)
{
	Value array = get_value(result, row, column);
	Buffer text;

	buffer_init(&text, size - 1);
	if (take_integer(&array, 4) == 1) /* dimensions; 0: it is empty */
	{
		int64_t count;

		take_integer(&array, 4); /* whether there are NULLs */
		take_integer(&array, 4); /* the type of elements */
		count = take_integer(&array, 4);
		take_integer(&array, 4); /* lower bound */
		while (count-- > 0)
		{
			char element[64] = "";
			size_t length = (size_t) take_integer(&array, 4);

			if (length >= sizeof(element) || length > array.length)
				break;
			memcpy(element, array.bytes, length);
			array.bytes += length;
			array.length -= length;
			buffer_append(&text, text.length == 0 ? "[" : ",", 1);
			buffer_append_json(&text, element);
		}
	}
	buffer_append_string(&text, text.length == 0 ? "[]" : "]");
	snprintf(json, size, "%s", text.failed ? "[]" : text.data);
	buffer_free(&text);
}

/* An enum's value is its label. */
static Verdict
read_verdict(const PGresult *result, int row, int column)
{
	char label[16];

	read_text(result, row, column, label, sizeof(label));
	for (size_t i = 0; i < VERDICT_UNAVAILABLE; i++)
	{
		if (strcmp(label, verdict_names[i]) == 0)
			return (Verdict) i;
	}
	return VERDICT_UNAVAILABLE;
}

static void
read_answer(const PGresult *result, int row, Authorization *answer)
{
	answer->has_limit = !PQgetisnull(result, row, COLUMN_REQUESTS_PER_MINUTE);
	answer->has_remaining = !PQgetisnull(result, row, COLUMN_REMAINING);
	answer->has_reset = !PQgetisnull(result, row, COLUMN_RESET);
	answer->requests_per_minute = read_int32(result, row, COLUMN_REQUESTS_PER_MINUTE);
	answer->remaining = read_int32(result, row, COLUMN_REMAINING);
	answer->retry_after = read_int32(result, row, COLUMN_RETRY_AFTER);
	answer->reset = read_time(result, row, COLUMN_RESET);
	read_uuid(result, row, COLUMN_KEY_ID, answer->key_id);
	read_uuid(result, row, COLUMN_PROJECT_ID, answer->project_id);

#define READ_TEXT(column, field)                                                                   \
	read_text(result, row, column, answer->field, sizeof(answer->field))
	READ_TEXT(COLUMN_PLAN, plan);
	READ_TEXT(COLUMN_PROJECT, project);
	READ_TEXT(COLUMN_NAME, name);
	READ_TEXT(COLUMN_HINT, hint);
	READ_TEXT(COLUMN_ENVIRONMENT, environment);
	READ_TEXT(COLUMN_COUNTED_AS, counted_as);
#undef READ_TEXT
	read_texts(result, row, COLUMN_PERMISSIONS, answer->permissions, sizeof(answer->permissions));

	answer->verdict = read_verdict(result, row, COLUMN_VERDICT);
}

/* Asks the database about the questions taken; leaves alone the answers that it does not give. */
static void
make_call(int64_t deadline)
{
	char error[DATABASE_ERROR_SIZE];
	PGresult *result = NULL;
	int64_t begun = clock_us();

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
		int ordinal = read_int32(result, row, COLUMN_ORDINAL);

		if (ordinal >= 0 && ordinal < call.count)
			read_answer(result, row, &call.answer[ordinal]);
	}
	PQclear(result);

	histogram_observe(&batches, call.count);
	histogram_observe(&calls, clock_us() - begun);
	if (database.failures > 0)
		log_info("authorizing again");
	database.failures = 0;
	database_up = true;
}

/*
 * Leads once: asks for all who wait, hands out the answers and passes leadership
 * on. The state of self is CHOSEN; true when it is ANSWERED afterwards.
 */
static bool
lead(Question *self)
{
	Task *woken[CALL_MAX + 1];
	Question *next;
	int count = 0;
	bool answered;

	call.count = 0;
	if (clock_remaining(self->deadline) > 0)
	{
		bool connected = ensure_connection(self->deadline);

		for (int i = 0; i < CALL_MAX; i++)
			call.answer[i].verdict = VERDICT_UNAVAILABLE;
		/*
		 * Tasks that are ready to run may have questions too. It costs nothing when
		 * there are none, and makes calls larger under load.
		 */
		task_yield();
		take_questions(); /* only now: some may have come while we connected */
		if (connected)
			make_call(self->deadline);
		explicit_bzero(call.parameter[PARAMETER_SECRETS].data,
					   call.parameter[PARAMETER_SECRETS].size);
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
			woken[count++] = question->task;
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
		woken[count++] = next->task;
	}
	pthread_mutex_unlock(&lock);

	/* call belongs to the next leader by now */
	for (int i = 0; i < count; i++)
		task_wake(woken[i]);
	return answered;
}

/* Waits until the question is answered or chosen; false when its time was up before that. */
static bool
wait_for_turn(Question *self)
{
	bool leaves = true;

	if (task_wait(-1, self->deadline) == TASK_WOKEN)
		return true;

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

	/* Woken in this very moment: somebody is about to. */
	if (!leaves)
		task_wait(-1, INT64_MAX);
	return !leaves;
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
		.task = task_self(),
		.state = QUESTION_QUEUED,
		.answer = answer,
	};
	bool waiting = true;
	int64_t begun = clock_us();

	answer->verdict = VERDICT_UNAVAILABLE;

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
	histogram_observe(&waits, clock_us() - begun);
	verdicts[answer->verdict]++;
}

bool
authorizer_works(void)
{
	static const char nobody[] = "nobody";
	Authorization answer;

	authorizer_ask(nobody, sizeof(nobody) - 1, NULL, NULL, &answer);
	return answer.verdict != VERDICT_UNAVAILABLE;
}

void
authorizer_metrics(Buffer *out)
{
	metrics_head(out, "regpilot_verdicts_total", "counter", "Verdicts on keys.");
	for (size_t i = 0; i < VERDICTS; i++)
		buffer_printf(out, "regpilot_verdicts_total{verdict=\"%s\"} %lld\n", verdict_names[i],
					  (long long) verdicts[i]);
	metrics_head(out, "regpilot_authorize_batch_size", "histogram",
				 "Keys asked about in one call of the database.");
	metrics_histogram(out, "regpilot_authorize_batch_size", "", &batches);
	metrics_head(out, "regpilot_authorize_call_seconds", "histogram",
				 "How long a call of the database took.");
	metrics_histogram(out, "regpilot_authorize_call_seconds", "", &calls);
	metrics_head(out, "regpilot_authorize_seconds", "histogram",
				 "How long a request waited for its verdict.");
	metrics_histogram(out, "regpilot_authorize_seconds", "", &waits);
	metrics_single(out, "regpilot_database_up", "gauge",
				   "Whether the last call of the database succeeded.", database_up);
	metrics_single(out, "regpilot_database_failures_total", "counter",
				   "Calls of the database, and connections, that failed.", failures);
}
