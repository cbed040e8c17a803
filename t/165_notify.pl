# What becomes of a key is told to who listens, whoever did it in whatever way.

use strict;
use warnings;
use lib 't/lib';
use JSON::PP;
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new(responder => 0);
my $listener = $site->node->background_psql('regpilot');
$listener->query_safe('LISTEN regpilot');

# The payloads that have come in since the last call, decoded.
sub told
{
	my $output = $listener->query_safe('SELECT 1');
	return map { decode_json($_) } $output =~ /notification "regpilot" with payload "(.*)" received/g;
}

my $project = $site->sql(q{SELECT regpilot.create_project('told')});
is_deeply([told()], [], 'of a project nothing is told');

my $id = $site->sql("SELECT key_id FROM regpilot.create_key('$project', 'first', 'ci')");
my %key = (key_id => $id, project_id => $project);
is_deeply([told()], [ { event => 'create', %key } ], 'a key created');

$site->sql("SELECT regpilot.disable_key('$id'), regpilot.enable_key('$id')");
$site->sql("UPDATE regpilot.api_key SET requests_per_minute = 5 WHERE id = '$id'");
is_deeply([told()], [], 'of other changes nothing is told');

$site->sql("UPDATE regpilot.api_key SET flagged_at = now() WHERE id = '$id'");
is_deeply([told()], [ { event => 'flag', %key } ], 'a key flagged');
$site->sql("UPDATE regpilot.api_key SET flagged_at = now() WHERE id = '$id'");
is_deeply([told()], [], 'and flagged again');
$site->sql("UPDATE regpilot.api_key SET flagged_at = NULL WHERE id = '$id'");
is_deeply([told()], [], 'and no longer flagged');

my $second = $site->sql(<<~SQL);
	INSERT INTO regpilot.api_key (project_id, name, hint, digest, permissions, rotated_from)
	VALUES ('$project', 'first', 'sk_...', sha256('second'), '{logs:read}', '$id') RETURNING id
	SQL
is_deeply([told()],
	[ { event => 'rotate', key_id => $second, project_id => $project, rotated_from => $id } ],
	'a key rotated, by direct SQL');

$site->sql("SELECT regpilot.revoke_key('$id', 'not told')");
is_deeply([told()], [ { event => 'revoke', %key } ], 'a key revoked');
$site->sql("SELECT regpilot.revoke_key('$id', 'again')");
is_deeply([told()], [], 'and revoked again');

$site->sql("BEGIN; UPDATE regpilot.api_key SET revoked_at = now() WHERE revoked_at IS NULL; ROLLBACK");
is_deeply([told()], [], 'what is rolled back is not told');
$site->sql('UPDATE regpilot.api_key SET revoked_at = now(), flagged_at = now() WHERE revoked_at IS NULL');
is_deeply([ sort map { "$_->{event} $_->{key_id}" } told() ], [ "flag $second", "revoke $second" ],
	'two things at once, by direct SQL');
$site->sql("DELETE FROM regpilot.api_key WHERE id = '$second'");
is_deeply([told()], [], 'of a deletion nothing is told');

# nobody can make events up
is($site->node->psql('regpilot', <<~SQL), 3, 'an admin cannot put the trigger on a table of his own');
	SET ROLE regpilot_admin;
	CREATE TEMP TABLE mine (id uuid, project_id uuid, name text, hint text, rotated_from uuid);
	CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION regpilot.notify_key('create');
	SQL

$listener->quit;
done_testing();
