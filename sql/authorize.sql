--
-- Verdicts, in the documented order of the checks.
--
SELECT regpilot.create_project('authorize test', 'growth') AS project \gset
SELECT key_id, key FROM regpilot.create_key(:'project', 'mine', 'prod', '{gateway:read,gateway:write}') \gset

-- a row as it comes
SELECT verdict, key_id = :'key_id' AS key_id, project_id = :'project' AS project_id, plan, requests_per_minute, remaining,
	retry_after, reset_at > now() AS reset_at, project, name, hint ~ '^sk_prod_\.\.\.[0-9a-z]{4}$' AS hint,
	environment, counted_as, permissions
FROM regpilot.authorize(:'key') \gx

-- nothing is told of a key that is none
SELECT * FROM regpilot.authorize('sk_this_is_no_key') \gx
SELECT verdict FROM regpilot.authorize(NULL);
SELECT verdict FROM regpilot.authorize('');
SELECT verdict FROM regpilot.authorize((:'key' || ' ')::regpilot.secret);
SELECT verdict FROM regpilot.authorize(upper(:'key')::regpilot.secret);

-- permissions: the default, those held and not held, one that is none, none asked for
SELECT p, (regpilot.authorize(:'key', p)).verdict
FROM unnest('{gateway:read,gateway:write,logs:read,analytics:read,keys:admin,"",gateway:writ,NULL}'::text[]) p;

-- environments: what is asked, or the key's own, or "other"
SELECT e, (regpilot.authorize(:'key', environment => e)).counted_as
FROM unnest('{dev,staging,prod,ci,other,DEV,production,"",NULL}'::text[]) e;
SELECT key AS plain_key FROM regpilot.create_key(:'project', 'no environment') \gset
SELECT environment, counted_as FROM regpilot.authorize(:'plain_key');

-- revoked before inactive before expired before forbidden before rate_limited
SELECT key_id AS id, key AS all_wrong FROM regpilot.create_key(:'project', 'all wrong', permissions => '{logs:read}',
	requests_per_minute => 1) \gset
SELECT verdict, remaining FROM regpilot.authorize(:'all_wrong', 'logs:read');
SELECT verdict, remaining, retry_after BETWEEN 1 AND 61 AS retry_after FROM regpilot.authorize(:'all_wrong', 'logs:read');
SELECT verdict, retry_after FROM regpilot.authorize(:'all_wrong');
UPDATE regpilot.api_key SET expires_at = now() - interval '1 second' WHERE id = :'id';
SELECT verdict FROM regpilot.authorize(:'all_wrong');
SELECT regpilot.disable_key(:'id');
SELECT verdict FROM regpilot.authorize(:'all_wrong');
SELECT regpilot.revoke_key(:'id');
SELECT verdict FROM regpilot.authorize(:'all_wrong');
SELECT key_id = :'id' AS key_id, name, requests_per_minute, remaining, counted_as FROM regpilot.authorize(:'all_wrong');

-- many at once: each ordinal once, in any order, nulls and repetitions as well
SELECT ordinal, verdict, name, counted_as
FROM regpilot.authorize_many('{7,3,3,-1,NULL,0}',
	ARRAY[:'key', 'sk_none', :'all_wrong', NULL, :'key', :'plain_key']::regpilot.secret[],
	'{gateway:read,NULL,NULL,gateway:read,logs:read,NULL}', '{ci,NULL,dev,NULL,nowhere,NULL}');
SELECT count(*) FROM regpilot.authorize_many('{}', '{}', '{}', '{}');
SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
WHERE attrelid = 'regpilot.authorization'::regclass AND attnum > 0 ORDER BY attnum;
SELECT * FROM error_of($$SELECT * FROM regpilot.authorize_many('{1}', '{a,b}', '{x}', '{x}')$$);
SELECT * FROM error_of($$SELECT * FROM regpilot.authorize_many('{1}', '{a}', NULL, '{x}')$$);

-- a verdict is of the latest committed state, and of what the transaction itself did
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) > 0 FROM regpilot.api_key;
SELECT verdict FROM regpilot.authorize(:'key');
SELECT regpilot.disable_key(:'key_id');
SELECT verdict FROM regpilot.authorize(:'key');
ROLLBACK;
SELECT verdict FROM regpilot.authorize(:'key');

-- nothing is written: a read-only transaction will do
BEGIN READ ONLY;
SELECT verdict FROM regpilot.authorize(:'key');
COMMIT;

-- no lock is held on return
BEGIN;
SELECT verdict FROM regpilot.authorize(:'key');
SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND relation = 'regpilot.api_key'::regclass;
COMMIT;

-- a change of the tables' description is noticed
ALTER TABLE regpilot.api_key ADD COLUMN note text;
SELECT verdict FROM regpilot.authorize(:'key');
REINDEX TABLE regpilot.api_key;
SELECT verdict FROM regpilot.authorize(:'key');
ALTER TABLE regpilot.api_key DROP COLUMN note;
SELECT verdict FROM regpilot.authorize(:'key');

DELETE FROM regpilot.project WHERE id = :'project';
SELECT verdict FROM regpilot.authorize(:'key');
