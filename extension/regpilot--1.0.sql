/* extension/regpilot--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION regpilot" to load this file. \quit

--
-- The schema may be here already. In one that somebody else owns or may create
-- in, their functions and operators could pass for ours, and would run with our
-- callers' rights.
--
DO $$
BEGIN
	IF EXISTS (
		SELECT FROM pg_catalog.pg_namespace n
			LEFT JOIN LATERAL pg_catalog.aclexplode(n.nspacl) a
				ON a.privilege_type OPERATOR(pg_catalog.=) 'CREATE' AND a.grantee OPERATOR(pg_catalog.<>) n.nspowner
		WHERE n.nspname OPERATOR(pg_catalog.=) 'regpilot'
			AND (a.grantee IS NOT NULL OR pg_catalog.pg_get_userbyid(n.nspowner) OPERATOR(pg_catalog.<>) current_user))
	THEN
		RAISE EXCEPTION 'schema "regpilot" is open to other roles'
			USING ERRCODE = 'insufficient_privilege',
				DETAIL = 'Another role owns it, or may create objects in it.',
				HINT = 'Drop the schema, or make it yours and revoke CREATE on it.';
	END IF;
END
$$;

--
-- Roles. They belong to the cluster, not to the database, so they may be here
-- already and DROP EXTENSION leaves them. All are NOLOGIN: grant them to your
-- own login roles.
--
DO $$
DECLARE
	role_name text;
BEGIN
	FOREACH role_name IN ARRAY
		ARRAY['regpilot_admin', 'regpilot_responder', 'regpilot_reader']
	LOOP
		IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role_name) THEN
			EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', role_name);
		END IF;
	END LOOP;
END
$$;

--
-- regpilot.secret: a key on its way in. Input hashes, output redacts, and the
-- internal form is the SHA-256 digest; see secret.c.
--
CREATE TYPE regpilot.secret;

CREATE FUNCTION regpilot.secret_in(cstring) RETURNS regpilot.secret
	AS 'MODULE_PATHNAME', 'regpilot_secret_in' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION regpilot.secret_out(regpilot.secret) RETURNS cstring
	AS 'MODULE_PATHNAME', 'regpilot_secret_out' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION regpilot.secret_recv(internal) RETURNS regpilot.secret
	AS 'MODULE_PATHNAME', 'regpilot_secret_recv' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION regpilot.secret_send(regpilot.secret) RETURNS bytea
	AS 'MODULE_PATHNAME', 'regpilot_secret_send' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

CREATE TYPE regpilot.secret (
	INPUT = regpilot.secret_in,
	OUTPUT = regpilot.secret_out,
	RECEIVE = regpilot.secret_recv,
	SEND = regpilot.secret_send,
	INTERNALLENGTH = 32,
	ALIGNMENT = char
);

CREATE FUNCTION regpilot.secret_digest(regpilot.secret) RETURNS bytea
	AS 'MODULE_PATHNAME', 'regpilot_secret_digest' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION regpilot.secret_digest(regpilot.secret) IS
	'STABLE, so that no plan shows a digest as a constant';
CREATE CAST (regpilot.secret AS bytea) WITH FUNCTION regpilot.secret_digest(regpilot.secret);

--
-- Whether a dump is being read in. Rows then come back as they were: none is seeded
-- here, and none audited; see restore.c.
--
CREATE FUNCTION regpilot.restoring() RETURNS bool
	AS 'MODULE_PATHNAME', 'regpilot_restoring' LANGUAGE C STABLE PARALLEL SAFE;

--
-- Tables
--
-- Plan names are COLLATE "C": catalog.c looks them up in that order, and no
-- change of the C library's collations can harm their index.
CREATE TABLE regpilot.plan (
	name text COLLATE "C" PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_-]{0,62}$'),
	requests_per_minute int CHECK (requests_per_minute > 0)
);
COMMENT ON COLUMN regpilot.plan.requests_per_minute IS 'NULL: unlimited';

INSERT INTO regpilot.plan
SELECT * FROM (VALUES
	('free', 10), ('startup', 100), ('growth', 500), ('enterprise', NULL)) seed
WHERE NOT regpilot.restoring();

CREATE TABLE regpilot.project (
	id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
	name text NOT NULL UNIQUE
		CHECK (pg_catalog.char_length(name) BETWEEN 1 AND 200 AND name !~ '[\x01-\x1f\x7f]'),
	plan text COLLATE "C" NOT NULL DEFAULT 'free' REFERENCES regpilot.plan (name) ON UPDATE CASCADE
);

-- catalog.c reads plan, project and api_key by column number and finds the
-- digest through the index of the constraint api_key_digest_key: add columns
-- at the end only.
CREATE TABLE regpilot.api_key (
	id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
	project_id uuid NOT NULL REFERENCES regpilot.project (id) ON DELETE CASCADE,
	name text NOT NULL
		CHECK (pg_catalog.char_length(name) BETWEEN 1 AND 200 AND name !~ '[\x01-\x1f\x7f]'),
	environment text CHECK (environment IN ('dev', 'staging', 'prod', 'ci')),
	hint text NOT NULL
		CHECK (pg_catalog.char_length(hint) BETWEEN 1 AND 64 AND hint !~ '[\x01-\x1f\x7f]'),
	digest bytea NOT NULL CONSTRAINT api_key_digest_key UNIQUE
		CHECK (pg_catalog.octet_length(digest) = 32),
	permissions text[] NOT NULL		-- of these, at least one, each once
		CHECK (pg_catalog.cardinality(permissions) > 0 AND
			   pg_catalog.array_ndims(permissions) = 1 AND
			   pg_catalog.cardinality(permissions) =
				   (permissions OPERATOR(pg_catalog.@>) '{gateway:read}')::int +
				   (permissions OPERATOR(pg_catalog.@>) '{gateway:write}')::int +
				   (permissions OPERATOR(pg_catalog.@>) '{logs:read}')::int +
				   (permissions OPERATOR(pg_catalog.@>) '{analytics:read}')::int),
	requests_per_minute int CHECK (requests_per_minute > 0),
	active bool NOT NULL DEFAULT true,
	revoked_at timestamptz,
	expires_at timestamptz,
	flagged_at timestamptz,
	revoke_reason text,
	rotated_from uuid,			-- no foreign key: one to its own table cannot be dumped in order
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	created_by text NOT NULL DEFAULT session_user,
	reviewed_at timestamptz
);
-- ANALYZE would copy digests to pg_statistic.
ALTER TABLE regpilot.api_key ALTER COLUMN digest SET STATISTICS 0;
CREATE INDEX api_key_project_id_idx ON regpilot.api_key (project_id);
CREATE INDEX api_key_rotated_from_idx ON regpilot.api_key (rotated_from) WHERE rotated_from IS NOT NULL;
COMMENT ON COLUMN regpilot.api_key.requests_per_minute IS 'NULL: the limit of the project''s plan';
COMMENT ON COLUMN regpilot.api_key.hint IS 'what a list may show of the key: its prefix and last four characters';
COMMENT ON COLUMN regpilot.api_key.digest IS 'SHA-256 of the whole key';

-- Revocation is for good, also against direct SQL.
CREATE FUNCTION regpilot.refuse_to_unrevoke() RETURNS trigger
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	RAISE EXCEPTION 'key % is revoked', OLD.id
		USING ERRCODE = 'object_not_in_prerequisite_state',
			DETAIL = 'Neither the time of its revocation nor its digest can be changed.',
			HINT = 'Create a new key.';
END
$$;
CREATE TRIGGER refuse_to_unrevoke BEFORE UPDATE ON regpilot.api_key
	FOR EACH ROW WHEN (OLD.revoked_at IS NOT NULL AND
		(NEW.revoked_at IS DISTINCT FROM OLD.revoked_at OR NEW.digest IS DISTINCT FROM OLD.digest))
	EXECUTE FUNCTION regpilot.refuse_to_unrevoke();

-- Written by the worker only, in fold.c, which knows the columns by number. The
-- last five are what of the totals belongs to the hour of the last update. Room is
-- left in each page so that updates stay heap-only.
CREATE TABLE regpilot.key_usage (
	key_id uuid NOT NULL REFERENCES regpilot.api_key (id) ON DELETE CASCADE,
	environment text COLLATE "C" NOT NULL CHECK (environment IN ('dev', 'staging', 'prod', 'ci', 'other')),
	total_requests bigint NOT NULL,
	failed_requests bigint NOT NULL,
	prompt_tokens bigint NOT NULL,
	completion_tokens bigint NOT NULL,
	last_used_at timestamptz,
	hour timestamptz NOT NULL DEFAULT pg_catalog.date_trunc('hour', pg_catalog.now(), 'UTC'),
	hour_total_requests bigint NOT NULL DEFAULT 0,
	hour_failed_requests bigint NOT NULL DEFAULT 0,
	hour_prompt_tokens bigint NOT NULL DEFAULT 0,
	hour_completion_tokens bigint NOT NULL DEFAULT 0,
	PRIMARY KEY (key_id, environment)
) WITH (fillfactor = 50);

-- The hours that are over. Rows go with the row of key_usage, not with the key:
-- the worker holds that row while it adds to these.
CREATE TABLE regpilot.usage_history (
	key_id uuid NOT NULL,
	environment text COLLATE "C" NOT NULL,
	hour timestamptz NOT NULL,
	total_requests bigint NOT NULL,
	failed_requests bigint NOT NULL,
	prompt_tokens bigint NOT NULL,
	completion_tokens bigint NOT NULL,
	PRIMARY KEY (key_id, environment, hour),
	FOREIGN KEY (key_id, environment) REFERENCES regpilot.key_usage ON DELETE CASCADE
);

-- What was flushed and not added to the totals yet, many keys to a row: the
-- worker's own; see journal.c. Ids and times are not worth compressing.
CREATE TABLE regpilot.usage_journal (
	partition int NOT NULL CHECK (partition BETWEEN 0 AND 63),
	writer uuid NOT NULL,
	key_ids uuid[] NOT NULL,
	environments text[] NOT NULL,
	hours timestamptz[] NOT NULL,
	total_requests bigint[] NOT NULL,
	failed_requests bigint[] NOT NULL,
	prompt_tokens bigint[] NOT NULL,
	completion_tokens bigint[] NOT NULL,
	last_used_at timestamptz[] NOT NULL
);
ALTER TABLE regpilot.usage_journal
	ALTER COLUMN key_ids SET STORAGE EXTERNAL,
	ALTER COLUMN last_used_at SET STORAGE EXTERNAL;

CREATE VIEW regpilot.usage_hourly WITH (security_invoker = true) AS
SELECT key_id, environment, hour, total_requests, failed_requests, prompt_tokens, completion_tokens
FROM regpilot.usage_history
UNION ALL
SELECT key_id, environment, hour, hour_total_requests, hour_failed_requests, hour_prompt_tokens,
	hour_completion_tokens
FROM regpilot.key_usage;
COMMENT ON VIEW regpilot.usage_hourly IS 'hours in UTC; a request counts in the hour of the flush interval that it was made in';

CREATE TABLE regpilot.upstream (
	name text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_-]{0,62}$'),
	base_url text NOT NULL CHECK (base_url ~ '^(https?://[^[:space:]]+|builtin:echo)$'),
	secret_name text CHECK (secret_name ~ '^[A-Z][A-Z0-9_]{0,127}$'),
	connect_timeout_ms int CHECK (connect_timeout_ms BETWEEN 1 AND 600000),
	timeout_ms int CHECK (timeout_ms BETWEEN 1 AND 3600000)
);
COMMENT ON COLUMN regpilot.upstream.base_url IS
	'an OpenAI-compatible base such as https://api.openai.com/v1, or builtin:echo';
COMMENT ON COLUMN regpilot.upstream.secret_name IS
	'the name under which the responder finds the credential; never the credential';
COMMENT ON COLUMN regpilot.upstream.connect_timeout_ms IS
	'time to connect to it; NULL: REGPILOT_CONNECT_TIMEOUT of the responder';
COMMENT ON COLUMN regpilot.upstream.timeout_ms IS
	'time that it may be silent; NULL: REGPILOT_UPSTREAM_TIMEOUT of the responder';

CREATE TABLE regpilot.route (
	id int PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY,
	quality text CHECK (quality IN ('cheap', 'balanced', 'frontier')),
	alias text CHECK (pg_catalog.char_length(alias) BETWEEN 1 AND 200 AND alias !~ '[\x01-\x1f\x7f]'),
	upstream text NOT NULL REFERENCES regpilot.upstream (name) ON UPDATE CASCADE ON DELETE CASCADE,
	model text CHECK (pg_catalog.char_length(model) BETWEEN 1 AND 200 AND model !~ '[\x01-\x1f\x7f]'),
	priority int NOT NULL DEFAULT 100,
	CHECK (pg_catalog.num_nonnulls(quality, alias) = 1),
	CHECK (quality IS NULL OR model IS NOT NULL)
);
COMMENT ON COLUMN regpilot.route.quality IS 'requests of this quality tier go this way';
COMMENT ON COLUMN regpilot.route.alias IS 'requests for this model name go this way; *: for any name without a route of its own';
COMMENT ON COLUMN regpilot.route.model IS 'the model asked of the upstream; NULL: the name that the request gave';
COMMENT ON COLUMN regpilot.route.priority IS 'lowest first';

INSERT INTO regpilot.upstream SELECT 'builtin', 'builtin:echo' WHERE NOT regpilot.restoring();
INSERT INTO regpilot.route (quality, alias, upstream, model, priority)
SELECT * FROM (VALUES
	('cheap', NULL, 'builtin', 'echo', 1000),
	('balanced', NULL, 'builtin', 'echo', 1000),
	('frontier', NULL, 'builtin', 'echo', 1000),
	(NULL, '*', 'builtin', 'echo', 1000)) seed
WHERE NOT regpilot.restoring();

-- Tell responders, which LISTEN, that the routing tables have changed.
CREATE FUNCTION regpilot.notify_routes() RETURNS trigger
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	PERFORM pg_catalog.pg_notify('regpilot_routes', '');
	RETURN NULL;
END
$$;
CREATE TRIGGER notify_routes AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON regpilot.upstream
	FOR EACH STATEMENT EXECUTE FUNCTION regpilot.notify_routes();
CREATE TRIGGER notify_routes AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON regpilot.route
	FOR EACH STATEMENT EXECUTE FUNCTION regpilot.notify_routes();

-- Tell sessions, which keep projects and plans between calls, that one has
-- changed. ALWAYS: also where changes are replicated to.
CREATE FUNCTION regpilot.invalidate_limits() RETURNS trigger
	AS 'MODULE_PATHNAME', 'regpilot_invalidate_limits' LANGUAGE C;
CREATE TRIGGER invalidate_limits AFTER UPDATE OR DELETE ON regpilot.plan
	FOR EACH ROW EXECUTE FUNCTION regpilot.invalidate_limits();
ALTER TABLE regpilot.plan ENABLE ALWAYS TRIGGER invalidate_limits;
CREATE TRIGGER invalidate_limits AFTER UPDATE OR DELETE ON regpilot.project
	FOR EACH ROW EXECUTE FUNCTION regpilot.invalidate_limits();
ALTER TABLE regpilot.project ENABLE ALWAYS TRIGGER invalidate_limits;

--
-- Notifications: NOTIFY regpilot with a JSON object for each key that is created,
-- rotated, revoked or flagged, by whatever statement; see notify.c. None while a
-- dump is read in: the trigger trust_dump, below, then turns such triggers off.
--
CREATE FUNCTION regpilot.notify_key() RETURNS trigger
	AS 'MODULE_PATHNAME', 'regpilot_notify_key' LANGUAGE C;
CREATE TRIGGER notify_create AFTER INSERT ON regpilot.api_key
	FOR EACH ROW WHEN (NEW.rotated_from IS NULL)
	EXECUTE FUNCTION regpilot.notify_key('create');
CREATE TRIGGER notify_rotate AFTER INSERT ON regpilot.api_key
	FOR EACH ROW WHEN (NEW.rotated_from IS NOT NULL)
	EXECUTE FUNCTION regpilot.notify_key('rotate');
CREATE TRIGGER notify_revoke AFTER UPDATE ON regpilot.api_key
	FOR EACH ROW WHEN (OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL)
	EXECUTE FUNCTION regpilot.notify_key('revoke');
CREATE TRIGGER notify_flag AFTER UPDATE ON regpilot.api_key
	FOR EACH ROW WHEN (OLD.flagged_at IS NULL AND NEW.flagged_at IS NOT NULL)
	EXECUTE FUNCTION regpilot.notify_key('flag');

--
-- Project isolation, its data: who belongs to which project. What follows from it
-- is at the end, under "Privileges".
--
CREATE TABLE regpilot.project_member (
	project_id uuid NOT NULL REFERENCES regpilot.project (id) ON DELETE CASCADE,
	role name NOT NULL,			-- need not exist: roles belong to the cluster, not to the database
	PRIMARY KEY (project_id, role)
);
COMMENT ON COLUMN regpilot.project_member.role IS
	'it, and whoever has its privileges, may see the project';

CREATE FUNCTION regpilot.my_projects() RETURNS uuid[]
	AS 'MODULE_PATHNAME', 'regpilot_my_projects' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION regpilot.my_projects() IS
	'the projects of which the current role, or one whose privileges it has, is a member';

--
-- Audit: who changed what. Rows have no foreign keys, for they outlive what they
-- tell of. Lists of what befell a project or a key, newest first, are read through
-- the two indexes.
--
CREATE TABLE regpilot.audit_log (
	id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
	at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	session_role text NOT NULL,
	role text NOT NULL,
	action text NOT NULL,
	table_name text NOT NULL,
	project_id uuid,
	key_id uuid,
	object text,
	old jsonb,
	new jsonb
);
CREATE INDEX audit_log_project_id_idx ON regpilot.audit_log (project_id, id);
CREATE INDEX audit_log_key_id_idx ON regpilot.audit_log (key_id, id);
COMMENT ON COLUMN regpilot.audit_log.session_role IS 'the role that the session logged in as';
COMMENT ON COLUMN regpilot.audit_log.role IS
	'the role that made the change, or had the owner of the table make it';
COMMENT ON COLUMN regpilot.audit_log.project_id IS 'the project that the row belongs to or is; NULL if none';
COMMENT ON COLUMN regpilot.audit_log.key_id IS 'the API key that the row is; NULL if none';
COMMENT ON COLUMN regpilot.audit_log.object IS 'the primary key of the row, of a member the role';
COMMENT ON COLUMN regpilot.audit_log.action IS 'insert, update, delete or truncate';
COMMENT ON COLUMN regpilot.audit_log.old IS
	'of an update the columns that changed, of a deletion those that were not null; "<redacted>" for a digest';
COMMENT ON COLUMN regpilot.audit_log.new IS
	'of an update the columns that changed, of an insertion those that are not null; "<redacted>" for a digest';

-- Append-only, also to its owner.
CREATE FUNCTION regpilot.refuse_to_rewrite() RETURNS trigger
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	RAISE EXCEPTION 'the audit log is append-only'
		USING ERRCODE = 'object_not_in_prerequisite_state',
			DETAIL = 'Its rows can be neither changed nor removed.',
			HINT = 'To archive old rows, copy them, and remove them with the trigger refuse_to_rewrite disabled.';
END
$$;
CREATE TRIGGER refuse_to_rewrite BEFORE UPDATE OR DELETE OR TRUNCATE ON regpilot.audit_log
	FOR EACH STATEMENT EXECUTE FUNCTION regpilot.refuse_to_rewrite();
ALTER TABLE regpilot.audit_log ENABLE ALWAYS TRIGGER refuse_to_rewrite;

-- The arguments of the trigger are the columns that have the row's key, its
-- project and its API key. ALWAYS: session_replication_role does not evade it.
CREATE FUNCTION regpilot.audit() RETURNS trigger
	AS 'MODULE_PATHNAME', 'regpilot_audit' LANGUAGE C;
DO $$
DECLARE
	audited record;
BEGIN
	FOR audited IN
		VALUES
			('plan', 'name'),
			('project', 'id, id'),
			('api_key', 'id, project_id, id'),
			('upstream', 'name'),
			('route', 'id'),
			('project_member', 'role, project_id')
	LOOP
		EXECUTE pg_catalog.format('CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON regpilot.%I'
			' FOR EACH ROW EXECUTE FUNCTION regpilot.audit(%s)', audited.column1, audited.column2);
		EXECUTE pg_catalog.format('CREATE TRIGGER audit_truncate AFTER TRUNCATE ON regpilot.%I'
			' FOR EACH STATEMENT EXECUTE FUNCTION regpilot.audit()', audited.column1);
		EXECUTE pg_catalog.format('ALTER TABLE regpilot.%I ENABLE ALWAYS TRIGGER audit,'
			' ENABLE ALWAYS TRIGGER audit_truncate', audited.column1);
	END LOOP;
END
$$;

--
-- The request log: one narrow row a request that record_many() heard of, kept
-- regpilot.log_retention; never a prompt, an answer or a key.
--
-- Partitions are made and dropped by requestlog.c, one a UTC day, and are no
-- members of the extension: a dump holds them whole, DROP EXTENSION drops them
-- with the table. The default partition takes the rows of a day without one, so
-- that no request fails to be recorded for lack of it.
--
CREATE TABLE regpilot.request_log (
	at timestamptz NOT NULL,
	id bigint NOT NULL GENERATED ALWAYS AS IDENTITY (CACHE 32),
	project_id uuid NOT NULL,	-- no foreign keys: checked on each write, and each key deleted would read it all
	key_id uuid NOT NULL,
	status int NOT NULL,
	latency_ms int,
	first_byte_ms int,
	prompt_tokens int NOT NULL,
	completion_tokens int NOT NULL,
	environment text NOT NULL,
	model text
) PARTITION BY RANGE (at);
COMMENT ON COLUMN regpilot.request_log.at IS 'when the outcome was recorded, a fraction of a second after the answer';
COMMENT ON COLUMN regpilot.request_log.id IS 'tells rows of the same time apart';
COMMENT ON COLUMN regpilot.request_log.status IS 'of the HTTP answer; 499: the client went away';
COMMENT ON COLUMN regpilot.request_log.latency_ms IS 'from the request to the end of its answer; NULL: unknown';
COMMENT ON COLUMN regpilot.request_log.first_byte_ms IS 'from the request to the beginning of its answer; NULL: none was sent, or unknown';
COMMENT ON COLUMN regpilot.request_log.prompt_tokens IS '0: none, or unknown';
COMMENT ON COLUMN regpilot.request_log.completion_tokens IS '0: none, or unknown';
COMMENT ON COLUMN regpilot.request_log.environment IS 'that the request counts under';
COMMENT ON COLUMN regpilot.request_log.model IS 'asked of the upstream; NULL: none was';

-- One index a partition and none on the table itself; see create_partition() in
-- requestlog.c. It is for a project's rows, the newest first, page by page:
--	WHERE project_id = $1 AND at <= $2 AND (at, id) < ($2, $3) ORDER BY at DESC, id DESC
-- where the second condition tells which partitions to read.
CREATE TABLE regpilot.request_log_default PARTITION OF regpilot.request_log DEFAULT;
CREATE INDEX request_log_default_project_id_at_id_idx
	ON regpilot.request_log_default (project_id, at, id);

CREATE FUNCTION regpilot.maintain_request_log(as_of timestamptz DEFAULT pg_catalog.now()) RETURNS void
	AS 'MODULE_PATHNAME', 'regpilot_maintain_request_log' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION regpilot.maintain_request_log(timestamptz) IS
	'what the worker does hourly: make the partitions of the request log for the days to come, drop what is older than regpilot.log_retention';

--
-- Histograms of times in ms, for quantiles; see histogram.c. NULL is the empty one.
--
CREATE FUNCTION regpilot.histogram_count(internal, int) RETURNS internal
	AS 'MODULE_PATHNAME', 'regpilot_histogram_count' LANGUAGE C IMMUTABLE PARALLEL SAFE;
CREATE FUNCTION regpilot.histogram_merge(internal, bigint[]) RETURNS internal
	AS 'MODULE_PATHNAME', 'regpilot_histogram_merge' LANGUAGE C IMMUTABLE PARALLEL SAFE;
CREATE FUNCTION regpilot.histogram_final(internal) RETURNS bigint[]
	AS 'MODULE_PATHNAME', 'regpilot_histogram_final' LANGUAGE C IMMUTABLE PARALLEL SAFE;
CREATE FUNCTION regpilot.histogram_add(bigint[], bigint[]) RETURNS bigint[]
	AS 'MODULE_PATHNAME', 'regpilot_histogram_add' LANGUAGE C IMMUTABLE PARALLEL SAFE;
CREATE FUNCTION regpilot.histogram_quantile(histogram bigint[], fraction float8) RETURNS int
	AS 'MODULE_PATHNAME', 'regpilot_histogram_quantile' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE AGGREGATE regpilot.histogram(int) (
	SFUNC = regpilot.histogram_count,
	STYPE = internal,
	FINALFUNC = regpilot.histogram_final
);
CREATE AGGREGATE regpilot.histogram_sum(bigint[]) (
	SFUNC = regpilot.histogram_merge,
	STYPE = internal,
	FINALFUNC = regpilot.histogram_final
);

--
-- The rollup of the request log: sums of its rows, for analytics(); made by rollup.c.
-- A partition a kind, since each is read by itself:
--	hour, day			of all keys together
--	key_hour, key_day	of each key
--	key_total			of each key in a day, of all models together: counts alone
-- Hours are kept as long as analytics() looks at them (a week, of a key two days), days
-- as long as the log.
--
CREATE TABLE regpilot.request_rollup (
	kind text NOT NULL,
	project_id uuid NOT NULL,	-- no foreign keys, as in the log
	since timestamptz NOT NULL,
	key_id uuid,
	environment text NOT NULL,
	model text,
	requests bigint NOT NULL,
	failed_requests bigint NOT NULL,
	prompt_tokens bigint NOT NULL,
	completion_tokens bigint NOT NULL,
	latency bigint[],
	first_byte bigint[],
	UNIQUE NULLS NOT DISTINCT (project_id, key_id, since, environment, model, kind)
) PARTITION BY LIST (kind);
CREATE INDEX request_rollup_since_idx ON regpilot.request_rollup (since, project_id, model);
COMMENT ON COLUMN regpilot.request_rollup.since IS 'the beginning of the hour or day, in UTC';
COMMENT ON COLUMN regpilot.request_rollup.latency IS 'a histogram of latency_ms; see histogram_quantile()';
COMMENT ON COLUMN regpilot.request_rollup.first_byte IS 'a histogram of first_byte_ms';
DO $$
DECLARE
	kind text;
BEGIN
	FOREACH kind IN ARRAY ARRAY['hour', 'day', 'key_hour', 'key_day', 'key_total']
	LOOP
		-- room in each page, so that updates stay heap-only
		EXECUTE pg_catalog.format('CREATE TABLE regpilot.request_rollup_%s PARTITION OF regpilot.request_rollup'
			' FOR VALUES IN (%L) WITH (fillfactor = 70)', kind, kind);
	END LOOP;
END
$$;

-- One row: the log's rows before that time are in the rollup, and the others are not.
CREATE TABLE regpilot.request_rollup_progress (
	rolled_up_to timestamptz NOT NULL,
	only_row bool PRIMARY KEY DEFAULT true CHECK (only_row)
);
INSERT INTO regpilot.request_rollup_progress
SELECT pg_catalog.date_trunc('day', pg_catalog.now(), 'UTC') WHERE NOT regpilot.restoring();

CREATE FUNCTION regpilot.roll_up(upto timestamptz, slice interval) RETURNS timestamptz
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	SET plan_cache_mode = force_custom_plan
	SET jit = off
	SET enable_sort = off		-- the newest rows are not in the statistics: it would sort them to group them
	AS $$
DECLARE
	lower timestamptz;
	upper timestamptz;
	today timestamptz := date_trunc('day', now(), 'UTC');
BEGIN
	SELECT rolled_up_to INTO lower FROM regpilot.request_rollup_progress FOR UPDATE;
	IF NOT FOUND THEN
		INSERT INTO regpilot.request_rollup_progress
		VALUES (today - current_setting('regpilot.log_retention')::interval)
		RETURNING rolled_up_to INTO lower;
	END IF;
	IF lower >= upto THEN
		RETURN lower;
	END IF;
	upper := least(upto, lower + slice);

	INSERT INTO regpilot.request_rollup AS r
	SELECT *
	FROM (
		SELECT
			CASE
				WHEN grouping(key_id) = 1 THEN CASE WHEN grouping(day) = 1 THEN 'hour' ELSE 'day' END
				WHEN grouping(model) = 1 THEN 'key_total'
				WHEN grouping(day) = 1 THEN 'key_hour'
				ELSE 'key_day'
			END AS kind,
			id, coalesce(hour, day) AS since, key_id, environment, model, count(*),
			count(*) FILTER (WHERE status >= 400), sum(prompt_tokens), sum(completion_tokens),
			CASE WHEN grouping(model) = 0 THEN regpilot.histogram(latency_ms) END,
			CASE WHEN grouping(model) = 0 THEN regpilot.histogram(first_byte_ms) END
		FROM (
			SELECT p.id, date_trunc('hour', l.at, 'UTC') AS hour, date_trunc('day', l.at, 'UTC') AS day, l.*
			FROM regpilot.project p CROSS JOIN LATERAL (
				SELECT at, key_id, environment, model, status, prompt_tokens, completion_tokens, latency_ms, first_byte_ms
				FROM regpilot.request_log
				WHERE project_id = p.id AND at >= lower AND at < upper) l
			) rows
		GROUP BY GROUPING SETS (
			(id, hour, environment, model), (id, day, environment, model),
			(id, hour, key_id, environment, model), (id, day, key_id, environment, model),
			(id, day, key_id, environment))
		) sums
	WHERE CASE kind
			WHEN 'hour' THEN since >= today - interval '7 days'
			WHEN 'key_hour' THEN since >= today - interval '1 day'
			ELSE true
		END
	ON CONFLICT (project_id, key_id, since, environment, model, kind) DO UPDATE SET
		requests = r.requests + excluded.requests,
		failed_requests = r.failed_requests + excluded.failed_requests,
		prompt_tokens = r.prompt_tokens + excluded.prompt_tokens,
		completion_tokens = r.completion_tokens + excluded.completion_tokens,
		latency = regpilot.histogram_add(r.latency, excluded.latency),
		first_byte = regpilot.histogram_add(r.first_byte, excluded.first_byte);

	-- a log that nobody writes to costs no write here either
	IF FOUND OR upper < upto THEN
		UPDATE regpilot.request_rollup_progress SET rolled_up_to = upper;
	END IF;
	RETURN upper;
END
$$;
COMMENT ON FUNCTION regpilot.roll_up(timestamptz, interval) IS
	'for the worker: roll up so much of the log, up to that time; returns up to which time it is rolled up';

CREATE FUNCTION regpilot.forget_rollup(since timestamptz) RETURNS timestamptz
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	day timestamptz := date_trunc('day', since, 'UTC');
BEGIN
	PERFORM FROM regpilot.request_rollup_progress FOR UPDATE;
	DELETE FROM regpilot.request_rollup r WHERE r.since >= day;
	UPDATE regpilot.request_rollup_progress SET rolled_up_to = least(rolled_up_to, day);
	RETURN day;
END
$$;
COMMENT ON FUNCTION regpilot.forget_rollup(timestamptz) IS
	'for the worker: have the sums of that day and later made anew';

CREATE FUNCTION regpilot.trim_rollup(horizon timestamptz) RETURNS void
	LANGUAGE sql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
	DELETE FROM regpilot.request_rollup WHERE since < horizon;
	DELETE FROM regpilot.request_rollup WHERE kind = 'hour' AND since < date_trunc('day', now(), 'UTC') - interval '7 days';
	DELETE FROM regpilot.request_rollup WHERE kind = 'key_hour' AND since < date_trunc('day', now(), 'UTC') - interval '1 day';
$$;
COMMENT ON FUNCTION regpilot.trim_rollup(timestamptz) IS
	'for the upkeep of the log: delete sums that are not looked at, and those before the horizon';

CREATE FUNCTION regpilot.roll_up_request_log(since timestamptz DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME', 'regpilot_roll_up_request_log' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION regpilot.roll_up_request_log(timestamptz) IS
	'what the worker does every 5 seconds: roll up the request log for analytics(); with a time, also anew that day and what came later, as rows that were put into the log by hand need';

--
-- Life of a key
--
CREATE FUNCTION regpilot.create_project(name text, plan text DEFAULT 'free') RETURNS uuid
	AS 'MODULE_PATHNAME', 'regpilot_create_project' LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION regpilot.create_key(project uuid, name text, environment text DEFAULT NULL,
		permissions text[] DEFAULT ARRAY['gateway:read', 'gateway:write', 'logs:read', 'analytics:read'],
		expires_at timestamptz DEFAULT NULL, requests_per_minute int DEFAULT NULL,
		OUT key_id uuid, OUT key text, OUT hint text)
	AS 'MODULE_PATHNAME', 'regpilot_create_key' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION regpilot.create_key(uuid, text, text, text[], timestamptz, int) IS
	'issue a key; its plaintext is returned here and kept nowhere';

CREATE FUNCTION regpilot.import_key(project uuid, name text, digest bytea, environment text DEFAULT NULL,
		permissions text[] DEFAULT ARRAY['gateway:read', 'gateway:write', 'logs:read', 'analytics:read'],
		expires_at timestamptz DEFAULT NULL, requests_per_minute int DEFAULT NULL,
		hint text DEFAULT 'imported')
	RETURNS uuid
	AS 'MODULE_PATHNAME', 'regpilot_import_key' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION regpilot.import_key(uuid, text, bytea, text, text[], timestamptz, int, text) IS
	'take over a key issued elsewhere, by the SHA-256 of all of it';

CREATE FUNCTION regpilot.rotate_key(key_id uuid, overlap interval DEFAULT '7 days',
		OUT key_id uuid, OUT key text, OUT hint text)
	AS 'MODULE_PATHNAME', 'regpilot_rotate_key' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION regpilot.rotate_key(uuid, interval) IS
	'issue the successor of a key, which itself expires after the overlap';

CREATE FUNCTION regpilot.review_key(key_id uuid) RETURNS void
	AS 'MODULE_PATHNAME', 'regpilot_review_key' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION regpilot.review_key(uuid) IS
	'acknowledge that a key is stale; its time begins anew';

CREATE FUNCTION regpilot.revoke_key(key_id uuid, reason text DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME', 'regpilot_revoke_key' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION regpilot.disable_key(key_id uuid) RETURNS void
	AS 'MODULE_PATHNAME', 'regpilot_disable_key' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION regpilot.enable_key(key_id uuid) RETURNS void
	AS 'MODULE_PATHNAME', 'regpilot_enable_key' LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION regpilot.key_checksum_ok(key text) RETURNS bool
	AS 'MODULE_PATHNAME', 'regpilot_key_checksum_ok' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

--
-- Checking a key
--
CREATE TYPE regpilot.verdict AS ENUM (
	'ok', 'invalid', 'inactive', 'expired', 'revoked', 'forbidden', 'rate_limited', 'unavailable'
);

CREATE TYPE regpilot.authorization AS (
	verdict regpilot.verdict,
	key_id uuid,				-- this and what follows: NULL when no such key
	project_id uuid,
	plan text,
	requests_per_minute int,	-- the limit in force; NULL: unlimited, or not judged
	remaining int,				-- places left; NULL: unlimited, or not judged
	retry_after int,			-- seconds; set when rate_limited
	reset_at timestamptz,		-- when the next place frees; NULL: unlimited, or not judged
	project text,
	name text,
	hint text,
	environment text,			-- the key's own
	counted_as text,			-- the environment that the request counts under
	permissions text[]
);

CREATE FUNCTION regpilot.authorize(secret regpilot.secret,
		permission text DEFAULT 'gateway:write', environment text DEFAULT NULL)
	RETURNS regpilot.authorization
	AS 'MODULE_PATHNAME', 'regpilot_authorize' LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION regpilot.authorize_many(ordinals int[], secrets regpilot.secret[],
		permissions text[], environments text[])
	RETURNS TABLE (ordinal int, verdict regpilot.verdict, key_id uuid, project_id uuid, plan text,
		requests_per_minute int, remaining int, retry_after int, reset_at timestamptz,
		project text, name text, hint text, environment text, counted_as text, permissions text[])
	AS 'MODULE_PATHNAME', 'regpilot_authorize_many' LANGUAGE C VOLATILE PARALLEL UNSAFE;

--
-- Stale keys
--
CREATE FUNCTION regpilot.flag_stale_keys(as_of timestamptz DEFAULT pg_catalog.now()) RETURNS int
	AS 'MODULE_PATHNAME', 'regpilot_flag_stale_keys' LANGUAGE C VOLATILE PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION regpilot.flag_stale_keys(timestamptz) IS
	'flag the keys that nobody has used for regpilot.stale_after; returns how many';

--
-- Usage
--
CREATE FUNCTION regpilot.record_many(key_ids uuid[], environments text[], statuses int[],
		latencies_ms int[], models text[], prompt_tokens bigint[], completion_tokens bigint[],
		first_bytes_ms int[] DEFAULT NULL)
	RETURNS int
	AS 'MODULE_PATHNAME', 'regpilot_record_many' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION regpilot.record_many(uuid[], text[], int[], int[], text[], bigint[], bigint[], int[]) IS
	'record what became of requests, one element of each array for each, in the request log and, when the transaction commits, in the counters; returns how many. Left out is what has no key that exists, or no status from 100 to 599. A time that is NULL or negative is unknown, as is a number of tokens, which counts as 0; more than 2147483647 count as that many, a first byte after the end as at the end, an environment that is NULL or none of dev, staging, prod and ci as other; a model is cut to 200 characters';

CREATE FUNCTION regpilot.flush_usage() RETURNS int
	AS 'MODULE_PATHNAME', 'regpilot_flush_usage' LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION regpilot.shared_memory_status(
		OUT bytes bigint, OUT slots int, OUT slots_used int, OUT slots_unflushed int, OUT slots_limiting int,
		OUT evicted bigint, OUT refused bigint, OUT flushed_at timestamptz, OUT flushed_rows int)
	AS 'MODULE_PATHNAME', 'regpilot_shared_memory_status' LANGUAGE C VOLATILE PARALLEL SAFE;
COMMENT ON FUNCTION regpilot.shared_memory_status() IS
	'slots: keys that fit; of those used: hold counts not flushed yet, hold requests in their rate window; since the server start: keys evicted, requests refused for lack of a slot; the last flush';

CREATE VIEW regpilot.key_overview WITH (security_invoker = true) AS
SELECT
	k.id AS key_id,
	k.project_id,
	p.name AS project,
	k.name,
	k.hint,
	k.environment,
	CASE
		WHEN k.revoked_at IS NOT NULL THEN 'revoked'
		WHEN NOT k.active THEN 'inactive'
		WHEN k.expires_at <= pg_catalog.now() THEN 'expired'
		ELSE 'active'
	END AS status,
	k.permissions,
	p.plan,
	coalesce(k.requests_per_minute, pl.requests_per_minute) AS requests_per_minute,
	k.created_at,
	k.expires_at,
	u.last_used_at,
	coalesce(u.total_requests, 0) AS total_requests,
	coalesce(u.failed_requests, 0) AS failed_requests,
	coalesce(pg_catalog.round(100.0 * u.failed_requests / nullif(u.total_requests, 0), 2), 0) AS error_rate,
	coalesce(u.active_environments, '{}') AS active_environments,
	k.flagged_at,
	k.revoked_at IS NULL AND k.active AND (k.expires_at IS NULL OR k.expires_at > pg_catalog.now()) AND
		k.created_at + pg_catalog.current_setting('regpilot.rotation_period', true)::interval <= pg_catalog.now() AND
		NOT EXISTS (SELECT FROM regpilot.api_key successor WHERE successor.rotated_from = k.id)
		AS rotation_due,
	k.rotated_from
FROM regpilot.api_key k
	JOIN regpilot.project p ON p.id = k.project_id
	JOIN regpilot.plan pl ON pl.name = p.plan
	LEFT JOIN LATERAL (
		SELECT
			pg_catalog.max(last_used_at) AS last_used_at,
			pg_catalog.sum(total_requests)::bigint AS total_requests,
			pg_catalog.sum(failed_requests)::bigint AS failed_requests,
			pg_catalog.array_agg(environment ORDER BY environment)
				FILTER (WHERE last_used_at > pg_catalog.now() - interval '30 days') AS active_environments
		FROM regpilot.key_usage
		WHERE key_id = k.id
	) u ON true;

CREATE VIEW regpilot.project_overview WITH (security_invoker = true) AS
SELECT
	p.id AS project_id,
	p.name,
	p.plan,
	pl.requests_per_minute,
	coalesce(k.active_keys, 0) AS active_keys,
	coalesce(k.total_keys, 0) AS total_keys,
	coalesce(k.total_requests, 0) AS total_requests,
	coalesce(k.failed_requests, 0) AS failed_requests,
	coalesce(pg_catalog.round(100.0 * k.failed_requests / nullif(k.total_requests, 0), 2), 0) AS error_rate,
	coalesce(t.prompt_tokens, 0) AS prompt_tokens,
	coalesce(t.completion_tokens, 0) AS completion_tokens,
	k.last_used_at,
	ARRAY(SELECT role FROM regpilot.project_member WHERE project_id = p.id ORDER BY role) AS members
FROM regpilot.project p
	JOIN regpilot.plan pl ON pl.name = p.plan
	LEFT JOIN (
		SELECT
			project_id,
			pg_catalog.count(*) FILTER (WHERE status = 'active') AS active_keys,
			pg_catalog.count(*) AS total_keys,
			pg_catalog.sum(total_requests)::bigint AS total_requests,
			pg_catalog.sum(failed_requests)::bigint AS failed_requests,
			pg_catalog.max(last_used_at) AS last_used_at
		FROM regpilot.key_overview
		GROUP BY project_id
	) k ON k.project_id = p.id
	LEFT JOIN (
		SELECT
			project_id,
			pg_catalog.sum(prompt_tokens)::bigint AS prompt_tokens,
			pg_catalog.sum(completion_tokens)::bigint AS completion_tokens
		FROM regpilot.api_key
			JOIN regpilot.key_usage ON key_id = id
		GROUP BY project_id
	) t ON t.project_id = p.id;

--
-- Pages for people and programs, as JSON: of the log, of sums of it, of keys and of
-- the audit. Each reads a bounded number of rows, through an index, whatever there is.
--
-- The members of a filter are strings, and one that is empty or null is not there.
--
CREATE FUNCTION regpilot.check_filter(filter jsonb, names text[]) RETURNS void
	LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	unknown text;
BEGIN
	IF jsonb_typeof(filter) IS DISTINCT FROM 'object' THEN
		RAISE EXCEPTION 'a filter must be a JSON object'
			USING ERRCODE = 'invalid_parameter_value',
				HINT = 'Its members may be: ' || array_to_string(names, ', ') || '.';
	END IF;
	SELECT min(name) INTO unknown FROM jsonb_object_keys(filter) name WHERE name <> ALL (names);
	IF unknown IS NOT NULL THEN
		RAISE EXCEPTION 'unknown parameter "%"', unknown
			USING ERRCODE = 'invalid_parameter_value',
				HINT = 'There are: ' || array_to_string(names, ', ') || '.';
	END IF;
END
$$;

CREATE FUNCTION regpilot.filter_value(filter jsonb, name text, pattern text, valid text) RETURNS text
	LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	value text := nullif(filter ->> name, '');
BEGIN
	IF value IS NOT NULL AND (jsonb_typeof(filter -> name) NOT IN ('string', 'number') OR value !~ pattern) THEN
		RAISE EXCEPTION 'invalid value for "%": "%"', name, value
			USING ERRCODE = 'invalid_parameter_value', HINT = 'Valid is ' || valid || '.';
	END IF;
	RETURN value;
END
$$;
COMMENT ON FUNCTION regpilot.filter_value(jsonb, text, text, text) IS
	'a member of a filter, which must match the pattern; NULL if it is not there';

CREATE FUNCTION regpilot.filter_time(filter jsonb, name text) RETURNS timestamptz
	LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO, YMD'
	AS $$
DECLARE
	valid text := 'a time such as 2026-11-24T03:00:00Z';
	value text := regpilot.filter_value(filter, name,
		'^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d(:?\d\d)?)?)?$', valid);
BEGIN
	RETURN value::timestamptz;
EXCEPTION
	WHEN data_exception THEN
		RAISE EXCEPTION 'invalid value for "%": "%"', name, filter ->> name
			USING ERRCODE = 'invalid_parameter_value', HINT = 'Valid is ' || valid || '.';
END
$$;
COMMENT ON FUNCTION regpilot.filter_time(jsonb, text) IS 'a member of a filter that is a time, of UTC where it names no zone';

CREATE FUNCTION regpilot.log_page(project uuid, filter jsonb DEFAULT '{}') RETURNS jsonb
	LANGUAGE plpgsql STABLE
	SET search_path = pg_catalog, pg_temp
	SET plan_cache_mode = force_custom_plan
	SET jit = off
	SET enable_sort = off		-- the index has the rows in order; to sort them is to read all
	AS $$
#variable_conflict use_column
DECLARE
	rows_max CONSTANT int := 50000;		-- that one call reads
	uuid_pattern CONSTANT text := '^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$';
	page_size int;
	lower timestamptz;
	upper timestamptz;
	key uuid;
	env text;
	of_model text;
	status_text text;
	status_min int := 0;
	status_max int := 2147483647;
	position text;
	before_at timestamptz := 'infinity';
	before_id bigint := 9223372036854775807;
	page jsonb;
	next_cursor text;
BEGIN
	PERFORM regpilot.check_filter(filter,
		'{from,to,key_id,environment,model,status,limit,cursor}');
	lower := coalesce(regpilot.filter_time(filter, 'from'), '-infinity');
	upper := coalesce(regpilot.filter_time(filter, 'to'), 'infinity');
	key := regpilot.filter_value(filter, 'key_id', uuid_pattern, 'the id of a key');
	env := regpilot.filter_value(filter, 'environment', '^(dev|staging|prod|ci|other)$', 'dev, staging, prod, ci or other');
	of_model := regpilot.filter_value(filter, 'model', '', 'a name');
	status_text := regpilot.filter_value(filter, 'status', '^([1-5]\d\d|[1-5]xx|failed)$', 'a number from 100 to 599, 2xx, 4xx, 5xx or failed');
	page_size := coalesce(regpilot.filter_value(filter, 'limit', '^([1-9]\d{0,2}|1000)$', 'a number from 1 to 1000'), '100');
	position := regpilot.filter_value(filter, 'cursor', '^-?\d{1,18}\.\d{1,18}$', 'next_cursor of another page');

	IF status_text = 'failed' THEN
		status_min := 400;
	ELSIF status_text LIKE '%xx' THEN
		status_min := left(status_text, 1)::int * 100;
		status_max := status_min + 99;
	ELSIF status_text IS NOT NULL THEN
		status_min := status_text;
		status_max := status_min;
	END IF;
	IF position IS NOT NULL THEN
		before_at := timestamptz 'epoch' + interval '1 microsecond' * split_part(position, '.', 1)::bigint;
		before_id := split_part(position, '.', 2);
	END IF;

	WITH found AS MATERIALIZED (
		SELECT r.*, row_number() OVER (ORDER BY at DESC, id DESC) AS number
		FROM (
			SELECT *
			FROM regpilot.request_log
			WHERE project_id = project AND at >= lower AND at < upper AND at <= before_at AND (at, id) < (before_at, before_id)
			ORDER BY at DESC, id DESC
			LIMIT rows_max
			) r
		WHERE (key IS NULL OR key_id = key) AND (env IS NULL OR environment = env) AND (of_model IS NULL OR model = of_model)
			AND status BETWEEN status_min AND status_max
		ORDER BY at DESC, id DESC
		LIMIT page_size + 1
	)
	SELECT
		coalesce(jsonb_agg(jsonb_build_object(
			'at', to_char(f.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
			'id', f.id,
			'key_id', f.key_id,
			'key_name', k.name,
			'key_hint', k.hint,
			'environment', f.environment,
			'model', f.model,
			'status', f.status,
			'latency_ms', f.latency_ms,
			'first_byte_ms', f.first_byte_ms,
			'prompt_tokens', f.prompt_tokens,
			'completion_tokens', f.completion_tokens) ORDER BY f.at DESC, f.id DESC) FILTER (WHERE number <= page_size), '[]'),
		CASE WHEN count(*) > page_size THEN
			min((extract(epoch FROM f.at) * 1000000)::bigint || '.' || f.id) FILTER (WHERE number = page_size)
		END
	INTO page, next_cursor
	FROM found f LEFT JOIN regpilot.api_key k ON k.id = f.key_id AND k.project_id = project;	-- not one that was moved

	-- not enough: the next call goes on after the rows that this one has read
	IF next_cursor IS NULL THEN
		SELECT (extract(epoch FROM at) * 1000000)::bigint || '.' || id
		INTO next_cursor
		FROM regpilot.request_log
		WHERE project_id = project AND at >= lower AND at < upper AND at <= before_at AND (at, id) < (before_at, before_id)
		ORDER BY at DESC, id DESC
		OFFSET rows_max - 1 LIMIT 1;
	END IF;
	RETURN jsonb_build_object('data', page, 'next_cursor', next_cursor);
END
$$;
COMMENT ON FUNCTION regpilot.log_page(uuid, jsonb) IS
	'rows of a project''s request log, newest first; filter: from, to, key_id, environment, model, status (a number, 2xx, 4xx, 5xx or failed), limit (100; at most 1000), cursor. A call reads at most 50000 rows: with a filter that few match a page may be short, or empty, and have a next_cursor';

CREATE FUNCTION regpilot.analytics(project uuid, filter jsonb DEFAULT '{}') RETURNS jsonb
	LANGUAGE plpgsql STABLE
	SET search_path = pg_catalog, pg_temp
	SET plan_cache_mode = force_custom_plan
	SET jit = off
	SET enable_sort = off		-- the newest rows are not in the statistics: it would sort them to group them
	SET work_mem = '32MB'
	AS $$
#variable_conflict use_column
DECLARE
	list_max CONSTANT int := 100;		-- keys, models
	period text;
	key uuid;
	env text;
	of_model text;
	unit text;				-- of the sums read
	slots timestamptz[];	-- their hours or days
	days timestamptz[];		-- that begin in the period
	lower timestamptz;
	upper timestamptz;
	rolled_up_to timestamptz;
	result jsonb;
BEGIN
	PERFORM regpilot.check_filter(filter, '{period,key_id,environment,model}');
	period := coalesce(regpilot.filter_value(filter, 'period', '^(day|week|month)$', 'day, week or month'), 'day');
	key := regpilot.filter_value(filter, 'key_id', '^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$', 'the id of a key');
	env := regpilot.filter_value(filter, 'environment', '^(dev|staging|prod|ci|other)$', 'dev, staging, prod, ci or other');
	of_model := regpilot.filter_value(filter, 'model', '', 'a name');

	-- whole hours and days of UTC, the last of which is not over; hours of a key are not kept for a week
	unit := CASE WHEN period = 'day' OR period = 'week' AND key IS NULL THEN 'hour' ELSE 'day' END;
	upper := date_trunc(unit, statement_timestamp(), 'UTC') + ('1 ' || unit)::interval;
	lower := CASE period
		WHEN 'day' THEN upper - interval '24 hours'
		ELSE date_trunc('day', statement_timestamp(), 'UTC') - interval '24 hours' * CASE period WHEN 'week' THEN 6 ELSE 29 END
	END;
	slots := ARRAY(SELECT * FROM generate_series(lower, upper - interval '1 microsecond', CASE unit WHEN 'hour' THEN interval '1 hour' ELSE interval '24 hours' END));
	days := ARRAY(SELECT slot FROM unnest(slots) slot WHERE slot = date_trunc('day', slot, 'UTC') ORDER BY slot);
	rolled_up_to := greatest(lower, coalesce((SELECT p.rolled_up_to FROM regpilot.request_rollup_progress p), lower));

	WITH recent AS MATERIALIZED (		-- what is not rolled up yet
		SELECT date_trunc(unit, at, 'UTC') AS since, environment, model, key_id, count(*) AS requests,
			count(*) FILTER (WHERE status >= 400) AS failed_requests, sum(prompt_tokens) AS prompt_tokens,
			sum(completion_tokens) AS completion_tokens, regpilot.histogram(latency_ms) AS latency,
			regpilot.histogram(first_byte_ms) AS first_byte
		FROM regpilot.request_log
		WHERE project_id = project AND at >= rolled_up_to AND at < upper
			AND (key IS NULL OR key_id = key) AND (env IS NULL OR environment = env) AND (of_model IS NULL OR model = of_model)
		GROUP BY 1, 2, 3, 4
	), sums AS MATERIALIZED (
		SELECT since, environment, model, requests, failed_requests, prompt_tokens, completion_tokens, latency, first_byte
		FROM regpilot.request_rollup
		WHERE kind = CASE WHEN key IS NULL THEN '' ELSE 'key_' END || unit AND project_id = project AND since = ANY (slots)
			AND (key IS NULL OR key_id = key) AND (env IS NULL OR environment = env) AND (of_model IS NULL OR model = of_model)
		UNION ALL
		SELECT since, environment, model, requests, failed_requests, prompt_tokens, completion_tokens, latency, first_byte
		FROM recent
	), grouped AS MATERIALIZED (
		SELECT grouping(since, environment, model) AS set, since, environment, model,
			coalesce(sum(requests), 0) AS requests,
			coalesce(sum(failed_requests), 0) AS failed_requests,
			coalesce(sum(prompt_tokens), 0) AS prompt_tokens,
			coalesce(sum(completion_tokens), 0) AS completion_tokens,
			regpilot.histogram_sum(latency) AS latency,
			regpilot.histogram_sum(first_byte) AS first_byte
		FROM sums
		GROUP BY GROUPING SETS ((), (since), (environment), (model))
	), counted AS (
		SELECT *,
			jsonb_build_object('requests', requests, 'failed_requests', failed_requests,
				'prompt_tokens', prompt_tokens, 'completion_tokens', completion_tokens) AS counts,
			jsonb_build_object('p50', regpilot.histogram_quantile(latency, 0.5), 'p95', regpilot.histogram_quantile(latency, 0.95),
				'p99', regpilot.histogram_quantile(latency, 0.99)) AS quantiles
		FROM grouped
	), sums_of_keys AS (	-- by whole days, and hours of the one before where the period begins within it
		SELECT key_id, requests, failed_requests, prompt_tokens, completion_tokens
		FROM regpilot.request_rollup
		WHERE kind = CASE WHEN of_model IS NULL AND key IS NULL THEN 'key_total' ELSE 'key_day' END
			AND project_id = project AND since = ANY (days)
			AND (key IS NULL OR key_id = key) AND (env IS NULL OR environment = env) AND (of_model IS NULL OR model = of_model)
		UNION ALL
		SELECT key_id, requests, failed_requests, prompt_tokens, completion_tokens
		FROM regpilot.request_rollup
		WHERE kind = 'key_hour' AND project_id = project AND since = ANY (slots) AND since < days[1]
			AND (key IS NULL OR key_id = key) AND (env IS NULL OR environment = env) AND (of_model IS NULL OR model = of_model)
		UNION ALL
		SELECT key_id, requests, failed_requests, prompt_tokens, completion_tokens
		FROM recent
	), keys AS (
		SELECT key_id, sum(requests) AS requests, sum(failed_requests) AS failed_requests,
			sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens
		FROM sums_of_keys
		GROUP BY key_id
		ORDER BY requests DESC, key_id
		LIMIT list_max
	)
	SELECT jsonb_build_object(
		'keys', (
			SELECT coalesce(jsonb_agg(jsonb_build_object('key_id', key_id, 'name', k.name, 'hint', k.hint, 'requests', requests,
				'failed_requests', failed_requests, 'prompt_tokens', prompt_tokens, 'completion_tokens', completion_tokens)
				ORDER BY requests DESC, key_id), '[]')
			FROM keys LEFT JOIN regpilot.api_key k ON k.id = key_id AND k.project_id = project),
		'totals', (
			SELECT counts || jsonb_build_object(
				'error_rate', coalesce(round(100.0 * failed_requests / nullif(requests, 0), 2), 0),
				'latency_ms', quantiles,
				'first_byte_ms', jsonb_build_object('p50', regpilot.histogram_quantile(first_byte, 0.5),
					'p95', regpilot.histogram_quantile(first_byte, 0.95), 'p99', regpilot.histogram_quantile(first_byte, 0.99)))
			FROM counted WHERE set = 7),
		'series', (
			SELECT jsonb_agg(jsonb_build_object('at', to_char(slot AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')) ||
				coalesce(counts || jsonb_build_object('latency_ms', quantiles),
					'{"requests": 0, "failed_requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "latency_ms": {"p50": null, "p95": null, "p99": null}}')
				ORDER BY slot)
			FROM unnest(slots) slot LEFT JOIN counted ON since = slot AND set = 3),
		'environments', (
			SELECT coalesce(jsonb_agg(jsonb_build_object('environment', environment) || counts ORDER BY requests DESC, environment), '[]')
			FROM counted WHERE set = 5),
		'models', (
			SELECT coalesce(jsonb_agg(jsonb_build_object('model', model) || counts || jsonb_build_object('latency_ms', quantiles)
				ORDER BY requests DESC, model), '[]')
			FROM (SELECT * FROM counted WHERE set = 6 ORDER BY requests DESC, model LIMIT list_max) m))
	INTO result;

	RETURN jsonb_build_object(
		'period', period,
		'from', to_char(lower AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
		'to', to_char(upper AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
		'interval', '1 ' || unit) || result;
END
$$;
COMMENT ON FUNCTION regpilot.analytics(uuid, jsonb) IS
	'sums and quantiles of a project''s request log; filter: period (day: the last 24 hours; week, month: the last 7 or 30 days of UTC, each with the one that is not over), key_id, environment, model. By the hour; a month, and the week of a key, by the day';

CREATE FUNCTION regpilot.audit_page(project uuid, filter jsonb DEFAULT '{}') RETURNS jsonb
	LANGUAGE plpgsql STABLE
	SET search_path = pg_catalog, pg_temp
	SET plan_cache_mode = force_custom_plan
	AS $$
#variable_conflict use_column
DECLARE
	page_size int;
	key uuid;
	before bigint;
	page jsonb;
	next_cursor text;
BEGIN
	PERFORM regpilot.check_filter(filter, '{key_id,limit,cursor}');
	key := regpilot.filter_value(filter, 'key_id', '^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$', 'the id of a key');
	page_size := coalesce(regpilot.filter_value(filter, 'limit', '^([1-9]\d{0,2}|1000)$', 'a number from 1 to 1000'), '100');
	before := coalesce(regpilot.filter_value(filter, 'cursor', '^\d{1,18}$', 'next_cursor of another page'), '9223372036854775807');

	WITH found AS (
		SELECT a.*, row_number() OVER (ORDER BY id DESC) AS number
		FROM (
			SELECT *
			FROM regpilot.audit_log
			WHERE project_id = project AND (key IS NULL OR key_id = key) AND id < before
			ORDER BY id DESC
			LIMIT page_size + 1
			) a
	)
	SELECT
		coalesce(jsonb_agg(jsonb_build_object(
			'at', to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
			'id', id,
			'role', role,
			'action', action,
			'table_name', table_name,
			'key_id', key_id,
			'object', object,
			'old', old,
			'new', new) ORDER BY id DESC) FILTER (WHERE number <= page_size), '[]'),
		CASE WHEN count(*) > page_size THEN min(id) FILTER (WHERE number = page_size) END
	INTO page, next_cursor
	FROM found;
	RETURN jsonb_build_object('data', page, 'next_cursor', next_cursor);
END
$$;
COMMENT ON FUNCTION regpilot.audit_page(uuid, jsonb) IS
	'what befell a project or one of its keys, newest first; filter: key_id, limit (100; at most 1000), cursor';

CREATE FUNCTION regpilot.key_page(project uuid, filter jsonb DEFAULT '{}') RETURNS jsonb
	LANGUAGE plpgsql STABLE
	SET search_path = pg_catalog, pg_temp
	SET plan_cache_mode = force_custom_plan
	SET jit = off
	SET timezone = 'UTC'
	SET datestyle = 'ISO, YMD'
	AS $$
#variable_conflict use_column
DECLARE
	page_size int;
	search text;
	of_status text;
	position text;
	before_at timestamptz := 'infinity';
	before_id uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
	ids uuid[];
	total bigint;
	next_cursor text;
	page jsonb;
BEGIN
	PERFORM regpilot.check_filter(filter, '{search,status,limit,cursor}');
	search := lower(regpilot.filter_value(filter, 'search', '', 'a part of a name or a hint'));
	of_status := regpilot.filter_value(filter, 'status', '^(active|inactive|expired|revoked|flagged|rotation_due)$',
		'active, inactive, expired, revoked, flagged or rotation_due');
	page_size := coalesce(regpilot.filter_value(filter, 'limit', '^([1-9]\d{0,2}|1000)$', 'a number from 1 to 1000'), '100');
	position := regpilot.filter_value(filter, 'cursor', '^-?\d{1,18}\.[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$', 'next_cursor of another page');
	IF position IS NOT NULL THEN
		before_at := timestamptz 'epoch' + interval '1 microsecond' * split_part(position, '.', 1)::bigint;
		before_id := split_part(position, '.', 2);
	END IF;

	-- which keys, without their usage; then the page, whole
	WITH matching AS MATERIALIZED (
		SELECT key_id, created_at
		FROM regpilot.key_overview
		WHERE project_id = $1		-- "project" is a column
			AND (search IS NULL OR strpos(lower(name), search) > 0 OR strpos(lower(hint), search) > 0)
			AND CASE of_status
				WHEN 'flagged' THEN flagged_at IS NOT NULL AND status <> 'revoked'
				WHEN 'rotation_due' THEN rotation_due
				ELSE of_status IS NULL OR status = of_status
			END
	), found AS (
		SELECT key_id, created_at
		FROM matching
		WHERE (created_at, key_id) < (before_at, before_id)
		ORDER BY created_at DESC, key_id DESC
		LIMIT page_size + 1
	)
	SELECT array_agg(key_id ORDER BY created_at DESC, key_id DESC),
		CASE WHEN count(*) > page_size THEN
			(array_agg((extract(epoch FROM created_at) * 1000000)::bigint || '.' || key_id ORDER BY created_at DESC, key_id DESC))[page_size]
		END,
		(SELECT count(*) FROM matching)
	INTO ids, next_cursor, total
	FROM found;

	SELECT coalesce(jsonb_agg(to_jsonb(o) ORDER BY created_at DESC, key_id DESC), '[]')
	INTO page
	FROM regpilot.key_overview o
	WHERE key_id = ANY (ids[:page_size]);
	RETURN jsonb_build_object('data', page, 'next_cursor', next_cursor, 'total', total);
END
$$;
COMMENT ON FUNCTION regpilot.key_page(uuid, jsonb) IS
	'rows of key_overview, newest first; filter: search (in names and hints), status (active, inactive, expired, revoked, flagged, rotation_due), limit (100; at most 1000), cursor';

-- For the responder, which knows the project from a key's verdict.
CREATE FUNCTION regpilot.key_log(project uuid, filter jsonb) RETURNS jsonb
	LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
	AS $$ SELECT regpilot.log_page(project, filter) $$;
CREATE FUNCTION regpilot.key_analytics(project uuid, filter jsonb) RETURNS jsonb
	LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
	AS $$ SELECT regpilot.analytics(project, filter) $$;

--
-- Dump and restore. Rows belong to a dump, also those that were seeded: they may
-- have been changed or deleted since.
--
SELECT pg_catalog.pg_extension_config_dump('regpilot.plan', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.project', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.project_member', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.api_key', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.key_usage', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.usage_history', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.usage_journal', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.upstream', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.route', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.route_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.audit_log', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.audit_log_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.request_log_default', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.request_log_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.request_rollup_hour', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.request_rollup_day', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.request_rollup_key_hour', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.request_rollup_key_day', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.request_rollup_key_total', '');
SELECT pg_catalog.pg_extension_config_dump('regpilot.request_rollup_progress', '');

-- Take the rows back in any order; see restore.c.
CREATE FUNCTION regpilot.trust_dump() RETURNS trigger
	AS 'MODULE_PATHNAME', 'regpilot_trust_dump' LANGUAGE C;
DO $$
DECLARE
	referencing regclass;
BEGIN
	FOR referencing IN
		SELECT DISTINCT conrelid FROM pg_catalog.pg_constraint
		WHERE contype = 'f' AND connamespace = 'regpilot'::regnamespace
	LOOP
		EXECUTE pg_catalog.format('CREATE TRIGGER trust_dump BEFORE INSERT ON %s'
			' FOR EACH STATEMENT EXECUTE FUNCTION regpilot.trust_dump()', referencing);
		EXECUTE pg_catalog.format('CREATE TRIGGER trust_dump_no_more AFTER INSERT ON %s'
			' FOR EACH STATEMENT EXECUTE FUNCTION regpilot.trust_dump()', referencing);
		EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER trust_dump,'
			' ENABLE ALWAYS TRIGGER trust_dump_no_more', referencing);
	END LOOP;
END
$$;

--
-- Privileges. The hot functions read by direct index scan, which asks for no
-- table privilege: EXECUTE on them is the gate.
--
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA regpilot FROM PUBLIC;
REVOKE ALL ON TYPE regpilot.secret FROM PUBLIC;

GRANT USAGE ON SCHEMA regpilot TO regpilot_admin, regpilot_responder, regpilot_reader;

GRANT EXECUTE ON FUNCTION
	regpilot.authorize(regpilot.secret, text, text),
	regpilot.authorize_many(int[], regpilot.secret[], text[], text[]),
	regpilot.record_many(uuid[], text[], int[], int[], text[], bigint[], bigint[], int[])
	TO regpilot_responder;
GRANT EXECUTE ON FUNCTION regpilot.key_log(uuid, jsonb), regpilot.key_analytics(uuid, jsonb) TO regpilot_responder;
GRANT SELECT ON regpilot.upstream, regpilot.route TO regpilot_responder;

GRANT SELECT ON regpilot.plan, regpilot.project, regpilot.project_member, regpilot.key_usage,
	regpilot.usage_history, regpilot.usage_hourly, regpilot.upstream, regpilot.route,
	regpilot.audit_log, regpilot.request_log, regpilot.request_rollup, regpilot.request_rollup_progress,
	regpilot.key_overview, regpilot.project_overview
	TO regpilot_reader, regpilot_admin;
-- all of a key but its digest
GRANT SELECT (id, project_id, name, environment, hint, permissions, requests_per_minute, active,
	revoked_at, revoke_reason, expires_at, rotated_from, created_at, created_by, flagged_at,
	reviewed_at) ON regpilot.api_key TO regpilot_reader, regpilot_admin;
GRANT EXECUTE ON FUNCTION regpilot.key_checksum_ok(text), regpilot.my_projects(),
	regpilot.shared_memory_status(), regpilot.histogram(int), regpilot.histogram_sum(bigint[]),
	regpilot.histogram_quantile(bigint[], float8), regpilot.filter_value(jsonb, text, text, text),
	regpilot.filter_time(jsonb, text), regpilot.check_filter(jsonb, text[]),
	regpilot.log_page(uuid, jsonb), regpilot.analytics(uuid, jsonb), regpilot.audit_page(uuid, jsonb),
	regpilot.key_page(uuid, jsonb) TO regpilot_reader;

GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA regpilot TO regpilot_admin;
GRANT INSERT, UPDATE, DELETE ON regpilot.plan, regpilot.project, regpilot.project_member,
	regpilot.api_key, regpilot.upstream, regpilot.route TO regpilot_admin;

-- Who may name the time of the request log's upkeep may have all of it dropped.
REVOKE EXECUTE ON FUNCTION regpilot.maintain_request_log(timestamptz), regpilot.roll_up_request_log(timestamptz),
	regpilot.roll_up(timestamptz, interval), regpilot.forget_rollup(timestamptz),
	regpilot.trim_rollup(timestamptz) FROM regpilot_admin;
-- for the responder, which answers for the project
REVOKE EXECUTE ON FUNCTION regpilot.key_log(uuid, jsonb), regpilot.key_analytics(uuid, jsonb) FROM regpilot_admin;

-- Triggers need no EXECUTE. Who has it can make triggers of these functions on
-- tables of his own, and so feed the audit log and the listeners what he likes.
DO $$
DECLARE
	trigger_function regprocedure;
BEGIN
	FOR trigger_function IN
		SELECT oid FROM pg_catalog.pg_proc
		WHERE pronamespace = 'regpilot'::regnamespace AND prorettype = 'trigger'::regtype
	LOOP
		EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM regpilot_admin', trigger_function);
	END LOOP;
END
$$;

--
-- Project isolation: a reader sees what belongs to projects that it is a member
-- of, an admin all. A table of such rows needs one line here: how they tell their
-- project. (Of a partitioned table that is the parent; its partitions are granted
-- to nobody.) my_projects() is called once a query, not once a row, and gives an
-- array, so that an index can find the rows.
--
DO $$
DECLARE
	isolated record;
BEGIN
	FOR isolated IN
		VALUES
			('project', 'id = ANY ((SELECT regpilot.my_projects())::uuid[])'),
			('project_member', 'project_id = ANY ((SELECT regpilot.my_projects())::uuid[])'),
			('api_key', 'project_id = ANY ((SELECT regpilot.my_projects())::uuid[])'),
			('audit_log', 'project_id = ANY ((SELECT regpilot.my_projects())::uuid[])'),
			('request_log', 'project_id = ANY ((SELECT regpilot.my_projects())::uuid[])'),
			('request_rollup', 'project_id = ANY ((SELECT regpilot.my_projects())::uuid[])'),
			-- the policy of api_key, which holds in the subquery too, does the rest
			('key_usage', 'EXISTS (SELECT FROM regpilot.api_key k WHERE k.id = key_id)'),
			('usage_history', 'EXISTS (SELECT FROM regpilot.api_key k WHERE k.id = key_id)')
	LOOP
		EXECUTE pg_catalog.format('ALTER TABLE regpilot.%I ENABLE ROW LEVEL SECURITY', isolated.column1);
		EXECUTE pg_catalog.format('CREATE POLICY admins_all ON regpilot.%I TO regpilot_admin USING (true)',
			isolated.column1);
		EXECUTE pg_catalog.format('CREATE POLICY members_read ON regpilot.%I FOR SELECT TO regpilot_reader'
			' USING (%s)', isolated.column1, isolated.column2);
	END LOOP;
END
$$;
