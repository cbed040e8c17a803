--
-- Rotation: a key gets a successor, and both open until the overlap is over.
--
SELECT regpilot.create_project('rotate test', 'enterprise') AS project \gset
SELECT key_id AS old_id, key AS old_key FROM regpilot.create_key(:'project', 'rotated', 'prod',
	'{logs:read,gateway:write}', '2099-01-01 00:00+00', 7) \gset
UPDATE regpilot.api_key SET flagged_at = now(), reviewed_at = now(), created_at = now() - interval '100 days'
	WHERE id = :'old_id';

BEGIN;
SELECT key_id AS new_id, key AS new_key, hint AS new_hint FROM regpilot.rotate_key(:'old_id') \gset
-- the old one has a week left
SELECT expires_at = now() + interval '7 days' AS expires_at, rotated_from, active, revoked_at
FROM regpilot.api_key WHERE id = :'old_id';
COMMIT;

-- the new one is as the old one was, but new
SELECT n.id <> o.id AS id, n.digest = sha256(:'new_key'::bytea) AS digest, n.hint = :'new_hint' AS hint,
	:'new_key' ~ '^sk_prod_[0-9a-z]{32}$' AND regpilot.key_checksum_ok(:'new_key') AS form,
	n.rotated_from = o.id AS rotated_from, n.created_at > o.created_at AS created_at, n.created_by = session_user AS created_by
FROM regpilot.api_key o, regpilot.api_key n WHERE o.id = :'old_id' AND n.id = :'new_id';
SELECT project_id = :'project' AS project, name, environment, permissions, requests_per_minute,
	expires_at = '2099-01-01 00:00+00' AS expires_at, active, revoked_at, flagged_at, reviewed_at
FROM regpilot.api_key WHERE id = :'new_id';
SELECT status, rotation_due, rotated_from = :'old_id' AS rotated_from FROM regpilot.key_overview WHERE key_id = :'new_id';

-- both open, each counts for itself and has a window of its own
SELECT verdict, key_id = :'old_id' AS key_id, remaining FROM regpilot.authorize(:'old_key');
SELECT verdict, key_id = :'new_id' AS key_id, remaining FROM regpilot.authorize(:'new_key');
SELECT verdict, key_id = :'new_id' AS key_id, remaining FROM regpilot.authorize(:'new_key');
SELECT regpilot.flush_usage() >= 0;
SELECT status, rotated_from IS NOT NULL AS is_successor, total_requests FROM regpilot.key_overview
WHERE name = 'rotated' ORDER BY 2;

-- a key is rotated once: also when its successor is dead, unless that is deleted
SELECT code, replace(message, :'old_id', 'OLD') AS message, replace(detail, :'new_id', 'NEW') AS detail, hint
FROM error_of(format('SELECT regpilot.rotate_key(%L)', :'old_id'));
SELECT regpilot.revoke_key(:'new_id');
SELECT code FROM error_of(format('SELECT regpilot.rotate_key(%L)', :'old_id'));
SELECT count(*) FROM regpilot.api_key WHERE name = 'rotated';
DELETE FROM regpilot.api_key WHERE id = :'new_id';
SELECT key_id AS second_id FROM regpilot.rotate_key(:'old_id', '1 hour') \gset

-- the successor of a successor
SELECT key_id AS third_id FROM regpilot.rotate_key(:'second_id', '0') \gset
SELECT status, rotated_from = :'second_id' AS rotated_from FROM regpilot.key_overview WHERE key_id = :'third_id';
SELECT status FROM regpilot.key_overview WHERE key_id = :'second_id';

-- a key without an expiry has a successor without one; no overlap at all
SELECT key_id AS old_id, key AS old_key FROM regpilot.create_key(:'project', 'at once') \gset
SELECT key_id AS new_id, key AS new_key FROM regpilot.rotate_key(:'old_id', '0') \gset
SELECT verdict FROM regpilot.authorize(:'old_key');
SELECT verdict FROM regpilot.authorize(:'new_key');
SELECT name, environment, permissions, requests_per_minute, expires_at, :'new_key' ~ '^sk_[0-9a-z]{32}$' AS form
FROM regpilot.api_key WHERE id = :'new_id';

-- a key issued elsewhere has one of our own as its successor
SELECT regpilot.import_key(:'project', 'imported', sha256('legacy-key'), 'prod') AS old_id \gset
SELECT key ~ '^sk_prod_[0-9a-z]{32}$' AS form, hint ~ '^sk_prod_\.\.\.[0-9a-z]{4}$' AS hint
FROM regpilot.rotate_key(:'old_id', '0');
SELECT verdict FROM regpilot.authorize('legacy-key');

-- the overlap does not prolong a life
SELECT key_id AS old_id FROM regpilot.create_key(:'project', 'short', expires_at => now() + interval '1 day') \gset
SELECT key_id AS new_id FROM regpilot.rotate_key(:'old_id', '10 years') \gset
SELECT count(*), count(DISTINCT expires_at), max(expires_at) < now() + interval '1 day' AS within_a_day
FROM regpilot.api_key WHERE name = 'short';

-- nor can it be rolled back by half
SELECT key_id AS old_id, key AS old_key FROM regpilot.create_key(:'project', 'rolled back') \gset
BEGIN;
SELECT key AS new_key FROM regpilot.rotate_key(:'old_id', '0') \gset
ROLLBACK;
SELECT verdict FROM regpilot.authorize(:'old_key');
SELECT verdict FROM regpilot.authorize(:'new_key');

-- overlaps that are not accepted
SELECT * FROM error_of(format('SELECT regpilot.rotate_key(%L, NULL)', :'old_id'));
SELECT * FROM error_of(format('SELECT regpilot.rotate_key(%L, ''-1 second'')', :'old_id'));
SELECT * FROM error_of(format('SELECT regpilot.rotate_key(%L, ''1 month -31 days'')', :'old_id'));
SELECT * FROM error_of(format('SELECT regpilot.rotate_key(%L, ''10 years 1 day'')', :'old_id'));
SELECT * FROM error_of(format('SELECT regpilot.rotate_key(%L, ''178000000 years'')', :'old_id'));
SELECT * FROM error_of(format('SELECT regpilot.rotate_key(%L, ''-178000000 years'')', :'old_id'));
SELECT code IN ('22007', '22023') AS refused FROM error_of(format('SELECT regpilot.rotate_key(%L, ''infinity'')', :'old_id'));	-- no interval at all before version 17
-- nothing to the comparison of intervals, to which a year has 360 days; once it is out of the calendar
SELECT * FROM error_of(format('SELECT regpilot.rotate_key(%L, ''-1 year 360 days'')', :'old_id'));
SELECT * FROM error_of(format('SELECT regpilot.rotate_key(%L, ''300000 years -108000000 days'')', :'old_id'));

-- keys that cannot be rotated
SELECT * FROM error_of('SELECT regpilot.rotate_key(NULL)');
SELECT * FROM error_of('SELECT regpilot.rotate_key(''00000000-0000-0000-0000-000000000000'')');
SELECT regpilot.disable_key(:'old_id');
SELECT code, replace(message, :'old_id', 'KEY') AS message, detail, hint FROM error_of(format('SELECT regpilot.rotate_key(%L)', :'old_id'));
SELECT regpilot.enable_key(:'old_id');
UPDATE regpilot.api_key SET expires_at = now() WHERE id = :'old_id';
SELECT code, replace(message, :'old_id', 'KEY') AS message, detail, hint FROM error_of(format('SELECT regpilot.rotate_key(%L)', :'old_id'));
UPDATE regpilot.api_key SET expires_at = NULL WHERE id = :'old_id';
SELECT regpilot.revoke_key(:'old_id');
SELECT code, replace(message, :'old_id', 'KEY') AS message, detail, hint FROM error_of(format('SELECT regpilot.rotate_key(%L)', :'old_id'));

-- and nothing was changed by it
SELECT count(*), max(expires_at) FROM regpilot.api_key WHERE name = 'rolled back';

-- an admin can
SET ROLE regpilot_admin;
SELECT key_id AS old_id FROM regpilot.create_key(:'project', 'admin''s') \gset
SELECT key AS new_key FROM regpilot.rotate_key(:'old_id') \gset
RESET ROLE;
SELECT verdict, name FROM regpilot.authorize(:'new_key');

-- nobody else
SET ROLE regpilot_reader;
SELECT regpilot.rotate_key(:'old_id');
SET ROLE regpilot_responder;
SELECT regpilot.rotate_key(:'old_id');
RESET ROLE;

DELETE FROM regpilot.project;
