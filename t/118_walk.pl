# The totals of a key and environment are found in their index by walking or by
# searching, as far apart as the used ones are: each gets its own count, and no other.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Test;
use Test::More;

my $keys = 3000;
my $site = RegPilot::Test->new(responder => 0, conf => "autovacuum = off\n");

$site->sql(<<~SQL);
	WITH p AS MATERIALIZED (SELECT regpilot.create_project('walk', 'enterprise') AS id)
	SELECT count(regpilot.import_key(p.id, 'key ' || i, sha256(i::text::bytea))) FROM p, generate_series(1, $keys) i;
	CREATE TABLE calls (key text, environment text);
	SQL

# Uses that share of the keys, by chance, some in several environments, and compares
# all totals with the calls that were made until now.
sub use_keys
{
	my ($share, $what) = @_;
	my $refused = $site->sql(<<~SQL);
		WITH chosen AS MATERIALIZED (
			SELECT i::text AS key, environment
			FROM generate_series(1, $keys) i, unnest('{dev,staging,prod,ci,other}'::text[]) environment
			WHERE hashtextextended(i || environment, 0) % 3 <> 0 AND random() < $share),
		called AS (INSERT INTO calls SELECT * FROM chosen RETURNING key, environment)
		SELECT count(*) FILTER (WHERE (regpilot.authorize(key::regpilot.secret, 'gateway:write', environment)).verdict <> 'ok') FROM called
		SQL
	is($refused, 0, "$what: keys are used");
	$site->sql('SELECT regpilot.flush_usage()');
	my $rows = 'SELECT key, environment, count(*) FROM calls GROUP BY 1, 2';
	my $totals = 'SELECT substr(k.name, 5), u.environment, u.total_requests FROM regpilot.key_usage u JOIN regpilot.api_key k ON k.id = u.key_id';
	is($site->sql("SELECT count(*) FROM (($rows EXCEPT ALL $totals) UNION ALL ($totals EXCEPT ALL $rows)) d"), 0, "$what: each total is right");
}

use_keys(0.01, 'few first rows');
use_keys(0.5, 'many rows between them');
use_keys($_, "a share of $_") foreach 1, 0.3, 0.05, 0.002, 0.0005, 0.2;

# versions of rows that are no more, in the table and in the index
$site->sql('UPDATE regpilot.key_usage SET last_used_at = last_used_at') foreach 1 .. 4;
use_keys($_, "a share of $_, with versions") foreach 0.01, 1, 0.1;
$site->sql(<<~SQL);
	DELETE FROM regpilot.api_key WHERE substr(name, 5)::int % 3 = 0;
	DELETE FROM calls WHERE key::int % 3 = 0;
	SQL
is($site->sql('SELECT count(*) FROM regpilot.key_usage JOIN regpilot.api_key k ON k.id = key_id WHERE substr(k.name, 5)::int % 3 = 0'), 0, 'keys are deleted');
$site->sql(<<~SQL);
	INSERT INTO regpilot.api_key (id, project_id, name, hint, digest, permissions)
	SELECT ('01997d1a-ffff-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, p.id, 'key ' || i, '...', sha256(i::text::bytea), '{gateway:write}'
	FROM regpilot.project p, generate_series(3, $keys, 3) i WHERE p.name = 'walk';
	SQL
use_keys($_, "a share of $_, with keys whose ids are in a row") foreach 0.1, 1, 0.01;

# which do not all wait in one partition of the journal
my $holder = $site->node->background_psql('regpilot');
$holder->query_safe('BEGIN; LOCK TABLE regpilot.key_usage IN SHARE MODE');
$site->sql("SELECT count((regpilot.authorize(i::text::regpilot.secret)).verdict) FROM generate_series(3, $keys, 3) i");
ok( $site->node->poll_query_until(
		'regpilot',
		"SELECT count(DISTINCT partition) > 60 AND sum(cardinality(key_ids)) = $keys / 3 FROM regpilot.usage_journal"),
	'their counts are spread over the journal');
$holder->query_safe('ROLLBACK');
$holder->quit;

done_testing();
